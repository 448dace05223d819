"""Laws of files of prompts: every form reads the same rows, and what is wrong is told with its line."""

import codecs
import csv
import io
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx_runtime.batch.cells import value_of
from ltx_runtime.batch.rows import COLUMNS, STANDARD_INPUT, Row, read_rows
from ltx_runtime.errors import LtxError
from ltx_runtime.planning.request import Request


def rows_of(folder, name, content, notes=None):
    """Returns the rows of a file with this content, text or bytes."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path, (notes if notes is not None else []).append))


LINES = st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=("Cs",)), max_size=30)


@settings(deadline=None)  # files take as long as the disk does
@given(prompts=st.lists(LINES), mark=st.sampled_from([b"", codecs.BOM_UTF8]), end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_line_of_text_is_a_prompt_whatever_ends_it(tmp_path_factory, prompts, mark, end):
    content = mark + end.join(prompts).encode()
    wanted = [
        Row(number, {"prompt": prompt.strip()})
        for number, prompt in enumerate(prompts, start=1)
        if prompt.strip() and not prompt.strip().startswith("#")
    ]
    if prompts and prompts[0].startswith("\ufeff"):  # a mark itself
        return
    assert rows_of(tmp_path_factory.getbasetemp(), "prompts.txt", content) == wanted


def test_comments_are_told_of(tmp_path):
    notes = []
    assert len(rows_of(tmp_path, "a.txt", "# animals\na fox\n", notes)) == 1
    assert notes == [f"1 line begins with # in {tmp_path / 'a.txt'}, as comments do"]


@pytest.mark.parametrize(
    ("first", "kind", "suffix"), [("prompt,seed", "CSV", ".csv"), ('{"prompt": "a fox"}', "JSON lines", ".jsonl")]
)
def test_a_text_that_looks_like_fields_is_prompts_with_a_note(tmp_path, first, kind, suffix):
    notes = []
    assert [row.fields for row in rows_of(tmp_path, "a.txt", first, notes)] == [{"prompt": first}]
    said = f"begins like {kind}, but every line of it is taken for a prompt; for fields, call it {suffix}"
    assert notes == [f"{tmp_path / 'a.txt'} {said}"]


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
EVERY = {
    "prompt": 'a "fox", 狐\nruns',
    "seed": 2**64 - 1,
    "height": 64,
    "fps": 12.5,
    "pad": True,
    "cfg_star": False,
    "timesteps": [1.0, 0.5],
    "skip_blocks": [11, 25],
    "image": "in/a.png",
    "conditions": [{"media": "b.png", "frame": 8, "strength": 0.5}, {"media": "c@2x.png", "frame": 0, "strength": 1.0}],
    "loras": [{"file": "fox.safetensors", "scale": 0.8}, {"file": "style.safetensors", "scale": 1.0}],
}
AS_CELLS = EVERY | {
    "pad": "yes",
    "cfg_star": "False",
    "timesteps": "1.0, 0.5",
    "skip_blocks": "11 25",
    "conditions": "b.png@8:0.5; c@2x.png@0",
    "loras": "fox.safetensors:0.8;style.safetensors",
}


def test_a_name_may_be_spelled_like_its_option(tmp_path):
    rows = rows_of(tmp_path, "a.csv", "Prompt,num-frames,negative-prompt\na fox-cub,9,no-one\n")
    rows += rows_of(tmp_path, "a.jsonl", '{"prompt": "a fox-cub", "num-frames": 9, "negative-prompt": "no-one"}\n')
    for row in rows:
        assert row.fields == {"prompt": "a fox-cub", "num_frames": 9, "negative_prompt": "no-one"}
    assert rows_of(tmp_path, "unnamed", "prompt;num-frames\na fox;9\n")[0].fields == {
        "prompt": "a fox",
        "num_frames": 9,
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_json_and_csv_say_the_same(tmp_path, delimiter):
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter)
    table.writerows([[*AS_CELLS, "output"], [*AS_CELLS.values(), "fox.webm"], [""] * 12, ["an owl"] + [" "] * 11])
    from_csv = rows_of(tmp_path, "a.csv", text.getvalue())
    objects = [EVERY | {"output": "fox.webm"}, {"prompt": "an owl"}]
    from_json = rows_of(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, objects)))
    assert [row.fields for row in from_csv] == [row.fields for row in from_json] == [EVERY, {"prompt": "an owl"}]
    assert [row.output for row in from_csv] == [row.output for row in from_json] == ["fox.webm", None]
    assert [row.line for row in from_csv] == [2, 5]  # the first prompt has two lines
    assert [row.line for row in from_json] == [1, 3]


@settings(deadline=None)  # files take as long as the disk does
@given(prompts=st.lists(CELLS.filter(str.strip), min_size=1))
def test_a_cell_in_quotes_holds_any_text(tmp_path_factory, prompts):
    text = io.StringIO()
    csv.writer(text).writerows([["prompt", "seed"], *([prompt, 3] for prompt in prompts)])
    rows = rows_of(tmp_path_factory.getbasetemp(), "any.csv", text.getvalue())
    assert [row.fields for row in rows] == [{"prompt": prompt, "seed": 3} for prompt in prompts]


def test_every_field_of_a_request_can_be_a_cell():
    assert {one.name for one in fields(Request)} < {*COLUMNS}
    for name in COLUMNS:
        value_of(name, "a.png@3" if name == "conditions" else "1")


@pytest.mark.parametrize(
    ("first", "form"),
    [
        ('{"prompt": "a fox"}\n', ".jsonl"),
        ("prompt,seed\na fox,3\n", ".csv"),
        ("Prompt;Seed\na fox;3\n", ".csv"),
        ("\n\nprompt\na fox\n", ".csv"),
        ("a fox, seed\nprompt, seed\n", ".txt"),
        ("{a fox}\n", ".txt"),
    ],
)
def test_what_comes_by_standard_input_or_has_no_suffix_is_recognized(tmp_path, monkeypatch, first, form):
    wanted = rows_of(tmp_path, f"a{form}", first)
    assert rows_of(tmp_path, "unnamed", first) == wanted
    with (tmp_path / "unnamed").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert list(read_rows(STANDARD_INPUT, print)) == wanted
        file.seek(0)  # it is still open


WHOLE_FILES = [
    ("a.XLSX", b"PK\3\4", r"a\.XLSX is a spreadsheet - save it as CSV in UTF-8"),
    ("a.txt", b"a fox\ncaf\xe9\n", r"line 2 of .*a\.txt is not in UTF-8 - save it as text in UTF-8"),
    ("a.csv", b"prompt\ncaf\xe9\n", r"line 2 of .*a\.csv is not in UTF-8"),
    ("a.txt", "a fox\n".encode("utf-16"), r"is in UTF-16 - save it as text in UTF-8"),
    ("a.txt", b"a fox\n\0\n", r"line 2 of .* has a NUL character"),
    ("a.txt", b"a" * 1_000_000, r"line 1 of .* is longer than 1000000 characters"),
    ("a.csv", b"prompt,heigth\nfox,3\n", r"has the column 'heigth', which no request has - use height"),
    ("a.csv", b"text\na fox\n", r"has the column 'text', which no request has - use prompt$"),
    ("a.csv", b"prompt,num-frame\nfox,9\n", r"has the column 'num_frame', which no request has - use num_frames$"),
    ("a.csv", b"Num-frames,num_frames\n9,9\n", r"has the column 'num_frames' twice"),
    (
        "a.csv",
        b"A fox in the snow, at dawn\n",
        r"^the first row of .*a\.csv must name the columns; got 'A fox in .*dawn' -",
    ),
    (
        "a.csv",
        b"a fox" * 50 + b"\n",
        r"^the first row of .* must name the columns; got .{60} - begin it with a row such as",
    ),
    ("a.csv", b"prompt,prompt\nfox,3\n", r"has the column 'prompt' twice - remove one"),
    ("a.csv", b'prompt\n"a fox\n', r"the row of .* from line 2 on is no CSV: unexpected end of data"),
    ("a.csv", b'prompt\n"' + b"a" * 200_000 + b'"\n', r"from line 2 on is no CSV: field larger than field limit"),
    ("a.json", b'[{"prompt": "a fox"}]', r"is JSON as a whole - write one object a line"),
]


@pytest.mark.parametrize(("name", "content", "message"), WHOLE_FILES, ids=[message for *_, message in WHOLE_FILES])
def test_a_file_that_is_no_table_of_prompts_is_refused(tmp_path, name, content, message):
    with pytest.raises(LtxError, match=message):
        rows_of(tmp_path, name, content)


ONE_ROW = [
    ("a.jsonl", "{bad", r"it is not JSON: .* - write one object a line"),
    ("a.jsonl", '{"seed": NaN}', r"it is not JSON: NaN is no number"),
    ("a.jsonl", '{"seed": 1, "seed": 2}', r"it is not JSON: it has 'seed' twice"),
    ("a.jsonl", '{"num-frames": 9, "num_frames": 17}', r"it has 'num_frames' twice - remove one"),
    ("a.jsonl", "[" * 100_000, r"it is nested too deeply"),
    ("a.jsonl", '{"seed": ' + "9" * 5000 + "}", r"it is not JSON: "),
    ("a.jsonl", "[1]", r"it is no object - write \{"),
    ("a.jsonl", '"a fox"', r"it is no object"),
    ("a.jsonl", '{"prompt": "a", "output": 3}', r"output must be text; got 3"),
    ("a.csv", "a fox, which runs,3", r"it has 3 cells for 2 columns - put cells with a comma in quotes"),
]


@pytest.mark.parametrize(("name", "content", "message"), ONE_ROW, ids=[content[:40] for _, content, _ in ONE_ROW])
def test_a_row_that_cannot_be_read_does_not_end_the_others(tmp_path, name, content, message):
    before, after = ("prompt,seed\n", "an owl,1") if name == "a.csv" else ('{"prompt": "an owl"}\n',) * 2
    bad, good = [row for row in rows_of(tmp_path, name, f"{before}{content}\n{after}") if row.line > 1]
    assert (bad.line, bool(good.problem)) == (2, False)
    with pytest.raises(LtxError, match=message):
        raise LtxError(bad.problem)


@settings(deadline=None)  # files take as long as the disk does
@given(
    content=st.binary(max_size=60) | st.text('{}[]",;\n\t 1aeprompt', max_size=60).map(str.encode),
    start=st.sampled_from(["", "prompt,seed\n", '{"prompt": "a"}\n', "long"]),
    name=st.sampled_from(["a.txt", "a.csv", "a.jsonl", "a"]),
)
def test_whatever_a_file_holds_is_rows_or_one_sentence(tmp_path_factory, content, start, name):
    try:
        rows = rows_of(
            tmp_path_factory.getbasetemp(), name, (start if start != "long" else "x" * 200_000).encode() + content
        )
    except LtxError as error:
        assert len(str(error)) < 1000
    else:
        assert not any(row.problem and row.fields for row in rows)


@pytest.mark.parametrize("cell", ["a.png", "[1", "a.png@0:7"])
def test_a_cell_that_cannot_be_read_is_the_problem_of_its_row(tmp_path, cell):
    (row,) = rows_of(tmp_path, "a.csv", f'prompt,conditions\na fox,"{cell}"\n')
    assert row.problem


@pytest.mark.parametrize("path", ["missing.txt", "."])
def test_a_file_that_cannot_be_opened_is_told(path):
    with pytest.raises(LtxError, match="cannot read"):
        list(read_rows(Path(path), print))
