"""Laws of pieces: together they compute what the whole model does, and the part of constant inputs runs once."""

import random
from functools import partial

import numpy as np
import pytest

from ltx_runtime.sessions import openvino_cpu
from ltx_runtime.sessions.found import Found
from ltx_runtime.sessions.openvino_cpu import OpenVinoRunner
from ltx_runtime.sessions.openvino_pieces import pieces_of
from ltx_runtime.spec.components import CONSTANT_INPUTS, Component

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed, as in the environment with .[cpu] alone")
operators = openvino.opset13
WIDTH = 4
INPUTS = ("text", "latents", "sines")


def model_of(seed, size=60):
    """Returns a model of random sums, differences and halves, whose numbers are whole and small, and so exact."""
    choose = random.Random(seed)
    parameters = [operators.parameter([-1, WIDTH], np.float32, name) for name in INPUTS]
    for parameter, name in zip(parameters, INPUTS, strict=True):
        parameter.output(0).set_names({name})
    shared = operators.constant(np.arange(WIDTH, dtype=np.float32))
    values = [parameter.output(0) for parameter in parameters]
    for i in range(size):
        a, b = choose.choice(values[-9:]), choose.choice([*values[-9:], *values[:3], shared.output(0)])
        kind = choose.randrange(4)
        if kind == 0:
            halves = operators.split(a, 1, 2)
            made = operators.concat([halves.output(1), halves.output(0)], 1)
        elif kind == 1:
            made = operators.maximum(a, b)
        else:
            made = operators.subtract(a, b)
        made.set_friendly_name(f"node {i}")
        values.append(made.output(0))
    results = [operators.result(value) for value in (values[-1], choose.choice(values[3:]))]
    for result, name in zip(results, ("first", "second"), strict=True):
        result.input_value(0).set_names(result.input_value(0).get_names() | {name})
    return openvino.Model(results, parameters)


@pytest.fixture
def runner_of(tmp_path, monkeypatch):
    """Returns a function that opens a model, cut into pieces of so many nodes."""

    def opened(model, nodes):
        monkeypatch.setattr(openvino_cpu, "pieces_of", partial(pieces_of, nodes=nodes))
        openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
        found = Found("openvino_q8", Component("transformer", (), ()), tmp_path / "model.xml", tmp_path, "q8")
        return OpenVinoRunner(found)

    return opened


def feeds_of(rows, seed=0):
    numbers = np.random.RandomState(seed)
    feeds = {name: numbers.randint(-9, 9, (rows, WIDTH)).astype(np.float32) for name in INPUTS}
    for array in feeds.values():
        array.flags.writeable = False
    return feeds


@pytest.mark.parametrize("seed", range(4))
def test_pieces_compute_what_the_whole_model_does(seed, runner_of):
    model = model_of(seed)
    whole = openvino.Core().compile_model(model, "CPU").create_infer_request()
    runner = runner_of(model, 7)
    assert len(runner._pieces) > 5
    feeds = {}
    for rows, text in ((1, "new"), (3, "new"), (3, "same"), (3, "same"), (2, "new")):
        feeds = feeds_of(rows, len(feeds)) | ({"text": feeds["text"]} if text == "same" else {})
        expected = whole.infer(list(feeds.values()))
        results = runner.run(feeds, ["first", "second"])
        for name, result in results.items():
            np.testing.assert_array_equal(result, expected[name])


def text_model(names):
    """Returns a model of two sums of a constant input, and a product with another input."""
    text, latents = (operators.parameter([-1, WIDTH], np.float32) for _ in range(2))
    text.output(0).set_names({"text"})
    latents.output(0).set_names({"latents"})
    once = operators.add(operators.add(text, text), operators.constant(np.float32(1)))
    product = operators.multiply(once, latents)
    for node, name in zip((once, product), names, strict=True):
        node.set_friendly_name(name)
    product.output(0).set_names({"product"})
    return openvino.Model([product], [text, latents])


class CountingRequest:
    def __init__(self, request):
        self.request, self.runs = request, 0

    def __getattr__(self, name):
        return getattr(self.request, name)

    def start_async(self):
        self.runs += 1
        self.request.start_async()


def test_what_depends_on_the_same_text_alone_runs_once(runner_of):
    runner = runner_of(text_model(("once", "product")), 100)
    fixed, _ = runner._pieces
    fixed.request = CountingRequest(fixed.request)
    feeds, other = feeds_of(2), feeds_of(2, 1)
    for text, latents, count in (
        (feeds, feeds, 1),
        (feeds, other, 1),  # the same text at another step
        (other, feeds, 2),
        (feeds, feeds, 3),
    ):
        given = {"text": text["text"], "latents": latents["latents"]}
        result = runner.run(given, ["product"])["product"]
        np.testing.assert_array_equal(result, (2 * given["text"] + 1) * given["latents"])
        assert fixed.request.runs == count


def test_text_that_may_have_been_written_to_is_computed_again(runner_of):
    runner = runner_of(text_model(("once", "product")), 100)
    feeds = {"text": np.ones((1, WIDTH), np.float32), "latents": np.ones((1, WIDTH), np.float32)}
    assert (runner.run(feeds, ["product"])["product"] == 3).all()
    feeds["text"][:] = 5
    assert (runner.run(feeds, ["product"])["product"] == 11).all()


def test_a_model_whose_nodes_cannot_be_told_apart_by_name_stays_whole():
    assert len([*pieces_of(text_model(("once", "product")), CONSTANT_INPUTS)]) == 2
    (whole,) = pieces_of(text_model(("same", "same")), CONSTANT_INPUTS)
    assert not whole.fixed and len(whole.model.inputs) == 2
