"""Laws of requests as plain data: they come back from JSON as they were, and what is wrong is told by its name."""

import json
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from fakes.requests import FILES, REQUESTS, with_files_in
from hypothesis import given

from ltx_runtime import Condition, LoraFile, LtxError, Request, fields_of_request, request_from_fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder, reached by a link, with the files that REQUESTS name."""
    real = tmp_path_factory.mktemp("plain") / "real" / "deep"
    for name in FILES:
        (real / name).parent.mkdir(parents=True, exist_ok=True)
        (real / name).touch()
    link = real.parents[1] / "link"
    link.symlink_to(real)
    return link


@given(request=REQUESTS)
def test_every_request_comes_back_from_its_fields_as_json(folder, request):
    plain = fields_of_request(with_files_in(folder, request), folder)
    assert request_from_fields(json.loads(json.dumps(plain)), folder) == with_files_in(folder, request)


def test_only_what_differs_from_the_defaults_is_a_field():
    assert fields_of_request(Request(), Path()) == {}
    plain = fields_of_request(Request("a fox", seed=3, conditions=(Condition("a.png"), Condition("b.png", 8))), Path())
    assert plain == {"prompt": "a fox", "seed": 3, "conditions": [{"media": "a.png"}, {"media": "b.png", "frame": 8}]}


def test_paths_belong_to_the_folder_and_image_is_short_for_the_first_condition(tmp_path):
    given = {"prompt": "a fox", "image": "a.png", "conditions": [{"media": str(tmp_path / "b.png"), "frame": 8}]}
    given |= {"video": "~/clip.mp4", "loras": [{"file": "in/fox.safetensors", "scale": 0.5}]}
    assert request_from_fields(given, Path("batch")) == Request(
        "a fox",
        conditions=(Condition(Path("batch/a.png")), Condition(tmp_path / "b.png", 8)),
        video=Path("~/clip.mp4"),
        loras=(LoraFile(Path("batch/in/fox.safetensors"), 0.5),),
    )


def test_paths_are_found_again_from_the_folder_whatever_links_lead_there(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    request = Request(conditions=(Condition("link/../x.png"), Condition(folder / "a.png"), Condition("~/none.png")))
    named = [one["media"] for one in fields_of_request(request, Path("link"))["conditions"]]
    assert named == ["../x.png", "a.png", "~/none.png"]
    assert os.path.samefile(folder / named[0], "link/../x.png")


def test_none_leaves_a_field_out():
    assert request_from_fields({one.name: None for one in fields(Request)} | {"image": None}, Path()) == Request()


WRONG = [
    ({"heigth": 64}, r"a request has no field 'heigth' - use height"),
    ({"lora": []}, r"a request has no field 'lora' - use loras"),
    ({"img": "a.png"}, r"a request has no field 'img' - use image"),
    ({"xyzzy": 1}, r"a request has no field 'xyzzy' - use one of prompt, .*, image"),
    ({3: 1}, r"a request has no field 3 - use one of prompt"),
    ({"height": "64"}, r"height must be a whole number; got '64' of type str"),
    ({"pad": 1}, r"pad must be True or False; got 1"),
    ({"prompt": "\ud800"}, r"prompt is not valid text"),
    ({"timesteps": 1.0}, r"timesteps must be a list; got 1.0"),
    ({"image": 3}, r"image must be a path; got 3"),
    ({"video": "a\0b"}, r"video has a NUL character"),
    ({"conditions": ["a.png"]}, r"a condition must be a mapping of its fields; got 'a.png' - give \{"),
    ({"conditions": [{"frame": 8}]}, r"a condition needs the field media - add it"),
    ({"conditions": [{"media": "a.png", "fram": 8}]}, r"a condition has no field 'fram' - use frame"),
    ({"conditions": {"media": "a.png"}}, r"conditions must be a list; got Condition"),
    ({"conditions": [{"media": {"url": "x"}}]}, r"media must be a path; got \{'url': 'x'\} of type dict"),
    ({"loras": [{"scale": 1}]}, r"a LoRA needs the field file"),
    ({"preset": {}}, r"a preset needs the field passes"),
    (
        {"preset": {"passes": [{"steps": 8, "guidance": [{"cfg": 1}]}]}},
        r"a guidance has no field 'cfg' - use one of cfg_scale",
    ),
    ({"preset": []}, r"preset must be a Preset; got \(\)"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[str(given)[:60] for given, _ in WRONG])
def test_what_is_wrong_is_told_by_its_name(given, message):
    with pytest.raises(LtxError, match=message):
        request_from_fields(given, Path())


def test_pictures_in_memory_are_no_plain_data():
    with pytest.raises(LtxError, match="pictures in memory are no plain data - save them to files first"):
        fields_of_request(Request(conditions=(Condition(np.zeros((8, 8, 3), np.uint8)),)), Path())
