"""Laws of denoising with sessions made of functions: which rows the transformer gets, and how they are combined.

The second implementation computes sample by sample and condition by condition, by the official formulas.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from fakes.encodings import timesteps_of
from fakes.requests import default_request
from fakes.sessions import session_of
from fakes.stages import ROPE, WIDTH

from ltx_runtime.noise.noise import SeededNoise
from ltx_runtime.planning.plan import plan
from ltx_runtime.sampling.conditioning import Conditioned
from ltx_runtime.sampling.pass_plan import PassPlan
from ltx_runtime.sampling.schedule import linear_quadratic
from ltx_runtime.sampling.velocity import make_latents, velocity_function
from ltx_runtime.spec.components import transformer
from ltx_runtime.spec.encodings import sinusoid_of
from ltx_runtime.spec.geometry import Grid, coords_of
from ltx_runtime.spec.presets import STG_MODES, Guidance
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.text.embeddings import Text

CHANNELS, TEXT_CHANNELS, LAYERS = 4, 6, 3
GRID = Grid(2, 2, 3)
COORDS = coords_of(GRID, 24.0, causal=True)
ROTATION = ROPE.rotation(COORDS, WIDTH)
KINDS = {
    "none": Guidance(),
    "cfg": Guidance(3.0, cfg_star=True),
    "stg": Guidance(1.0, 2.0, 0.7, (1,)),
    "cfg_and_stg": Guidance(3.0, 1.0, 0.7, (0, 2)),
}
EVERY_KIND = pytest.mark.parametrize("guidance", KINDS.values(), ids=KINDS)
BATCHES = (1, 2, 3)
EVERY_MODE = pytest.mark.parametrize("mode", STG_MODES)
PASSES = [(version, number) for version in VERSIONS.values() for number in range(len(version.passes))]
EVERY_PASS = pytest.mark.parametrize(
    ("version", "number"), PASSES, ids=[f"{version.name}_pass_{number + 1}" for version, number in PASSES]
)
SKIP_WEIGHTS = np.arange(1, 10).reshape(LAYERS, 3) / 90  # a different weight for each mode in each layer
DEMO = VERSIONS["demo"]
PLANNED = plan(default_request(DEMO, "a cat", 7), DEMO)


def drawn(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def text_of(batch):
    """Returns different embeddings and masks for every prompt, positive or negative."""
    masks = (np.arange(5) <= np.arange(2 * batch)[:, None] % 5).astype(np.int64)
    return Text(drawn(3, batch, 5, TEXT_CHANNELS), masks[:batch], drawn(4, batch, 5, TEXT_CHANNELS), masks[batch:])


def one_row(rotation, latents, timesteps, text, text_mask, skip):
    """Computes one row (N, C) of a transformer: every input matters, and every layer that skips in any mode."""
    said = (text * text_mask[:, None]).sum() / text_mask.sum()
    where = np.sin((rotation["cosines"] - 2 * rotation["sines"]).sum(1))[:, None]
    kept = 1 - ((1 - skip) * SKIP_WEIGHTS).sum()
    return np.tanh(latents + said * where) * (1 + timesteps[:, None]) * kept


def by_rows(feeds):
    rows = len(feeds["text"])
    skips = feeds["skip_mask"].transpose(2, 0, 1) if "skip_mask" in feeds else np.ones((rows, LAYERS, 3))
    inputs = (feeds["latents"], timesteps_of(feeds["sinusoid"]), feeds["text"], feeds["text_mask"], skips)
    made = [one_row(feeds, *row) for row in zip(*inputs, strict=True)]
    return {"velocity": np.stack(made).astype(np.float32)}


def by_hand(guidance, tokens, timesteps, text, mode):
    """Computes the official formulas for one sample: tokens (N, C), timesteps (N,) or (1,), text of one prompt."""

    def velocity(embeddings, mask, skipped=()):
        skip = np.ones((LAYERS, 3))
        skip[list(skipped), STG_MODES.index(mode)] = 0
        return one_row(ROTATION._asdict(), tokens.astype(np.float64), timesteps, embeddings[0], mask[0], skip)

    c = guided = velocity(text.embeddings, text.mask)
    if guidance.cfg_scale > 1:
        u = velocity(text.negative_embeddings, text.negative_mask)
        u = u * (c * u).sum() / (u * u).sum() if guidance.cfg_star else u
        guided = u + guidance.cfg_scale * (c - u)
    if guidance.stg_scale > 0:
        guided = guided + guidance.stg_scale * (c - velocity(text.embeddings, text.mask, guidance.skip_blocks))
        if guidance.rescale != 1:
            guided = guided * (guidance.rescale * c.std(ddof=1) / guided.std(ddof=1) + 1 - guidance.rescale)
    return guided


def alone(text, sample):
    return Text(
        *(each[[sample]] for each in (text.embeddings, text.mask, text.negative_embeddings, text.negative_mask))
    )


def steps_of(*guidance):
    return PassPlan(GRID, linear_quadratic(len(guidance)), guidance, False)


def velocity_of(guidance, text, tokens, timesteps, mode="attention_values", **how):
    """Returns the guided velocity, and the session that computed it."""
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS, WIDTH, LAYERS), by_rows)
    planned = replace(PLANNED.settings, stg_mode=mode)
    function = velocity_function(session, text, ROTATION, steps_of(guidance), planned, **how)
    return function(tokens, timesteps, 0), session


@EVERY_MODE
@EVERY_KIND
@pytest.mark.parametrize("low_memory", [False, True], ids=["one_batch", "one_after_another"])
def test_each_sample_of_a_batch_gets_what_it_gets_alone_by_hand(guidance, mode, low_memory):
    for batch, levels in product(BATCHES, (1, GRID.tokens)):  # one timestep for all tokens, or one per token
        text, tokens = text_of(batch), drawn(1, batch, GRID.tokens, CHANNELS)
        timesteps = np.linspace(0, 0.8, levels, dtype=np.float32)[None]
        made, _ = velocity_of(guidance, text, tokens, timesteps, mode, low_memory=low_memory)
        case = f"batch of {batch}, {levels} timesteps"
        assert (made.dtype, made.shape) == (np.float32, tokens.shape), case
        for sample in range(batch):
            expected = by_hand(guidance, tokens[sample], timesteps[0], alone(text, sample), mode)
            np.testing.assert_allclose(made[sample], expected, rtol=1e-4, atol=1e-5, err_msg=case)


@EVERY_MODE
@pytest.mark.parametrize(
    ("kind", "conditions"),
    [("none", "t"), ("cfg", "tn"), ("stg", "tp"), ("cfg_and_stg", "tnp")],
)
def test_samples_of_a_condition_lie_together_and_only_the_perturbed_skip(kind, conditions, mode):
    guidance, timesteps = KINDS[kind], np.linspace(0, 1, GRID.tokens, dtype=np.float32)[None]
    for batch in BATCHES:
        text, tokens = text_of(batch), drawn(1, batch, GRID.tokens, CHANNELS)
        _, session = velocity_of(guidance, text, tokens, timesteps, mode)
        (feeds,), case = session.runner.fed, f"batch of {batch}"
        of = {"t": (text.embeddings, text.mask), "n": (text.negative_embeddings, text.negative_mask)}
        of["p"] = of["t"]
        for place, name in enumerate(conditions):
            rows = slice(place * batch, (place + 1) * batch)
            np.testing.assert_array_equal(feeds["latents"][rows], tokens, case)
            np.testing.assert_array_equal(feeds["text"][rows], of[name][0], case)
            np.testing.assert_array_equal(feeds["text_mask"][rows], of[name][1], case)
        count = len(conditions) * batch
        np.testing.assert_array_equal(feeds["sinusoid"], sinusoid_of(timesteps).repeat(count, 0), case, strict=True)
        for name, array in ROTATION._asdict().items():
            np.testing.assert_array_equal(feeds[name], array, case, strict=True)
        expected = np.ones((LAYERS, len(STG_MODES), count), np.float32)
        if "p" in conditions:
            for block in guidance.skip_blocks:
                expected[block, STG_MODES.index(mode), -batch:] = 0
        np.testing.assert_array_equal(feeds["skip_mask"], expected, case, strict=True)


@EVERY_KIND
def test_with_little_memory_conditions_run_one_after_another_each_with_the_whole_batch(guidance):
    text, tokens, timesteps = text_of(2), drawn(1, 2, GRID.tokens, CHANNELS), np.full((1, 1), 0.5, np.float32)
    together, one = velocity_of(guidance, text, tokens, timesteps)
    after_another, several = velocity_of(guidance, text, tokens, timesteps, low_memory=True)
    np.testing.assert_allclose(after_another, together, rtol=1e-6, atol=1e-6)
    (batch,) = one.runner.fed
    assert len(several.runner.fed) == 1 + guidance.uses_cfg + guidance.uses_stg
    for name, array in batch.items():
        parts = [fed[name] for fed in several.runner.fed]
        if name in ROTATION._fields:  # has no batch axis
            np.testing.assert_array_equal(parts, [array] * len(parts))
        else:
            axis = array.ndim - 1 if name == "skip_mask" else 0
            np.testing.assert_array_equal(np.concatenate(parts, axis), array)


@pytest.mark.parametrize("low_memory", [False, True], ids=["one_batch", "one_after_another"])
def test_what_stays_the_same_is_the_same_read_only_array_at_every_step(low_memory):
    fed = []
    session = session_of(
        transformer(CHANNELS, TEXT_CHANNELS, WIDTH, LAYERS), lambda feeds: fed.append(feeds) or by_rows(feeds)
    )
    steps, count = steps_of(*[KINDS["cfg_and_stg"]] * 2), 3 if low_memory else 1
    function = velocity_function(session, text_of(1), ROTATION, steps, PLANNED.settings, low_memory=low_memory)
    for index in range(2):
        function(drawn(index, 1, GRID.tokens, CHANNELS), np.full((1, 1), 0.5, np.float32), index)
    for first, second in zip(fed[:count], fed[count:], strict=True):
        same = {name for name, array in first.items() if second[name] is array}
        assert same == {"cosines", "sines", "text", "text_mask", "skip_mask"}
        assert not any(first[name].flags.writeable for name in same)
    for name in ROTATION._fields:  # one upload serves all conditions
        assert len({id(feeds[name]) for feeds in fed}) == 1


def test_one_prompt_serves_a_whole_batch():
    guidance, text = KINDS["cfg_and_stg"], text_of(1)
    tokens, timesteps = drawn(1, 3, GRID.tokens, CHANNELS), np.full((1, 1), 0.5, np.float32)
    made, _ = velocity_of(guidance, text, tokens, timesteps)
    for sample in range(3):
        expected = by_hand(guidance, tokens[sample], timesteps[0], text, "attention_values")
        np.testing.assert_allclose(made[sample], expected, rtol=1e-4, atol=1e-5)


def test_every_step_has_the_guidance_of_its_place():
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS, WIDTH, LAYERS), by_rows)
    function = velocity_function(session, text_of(1), ROTATION, steps_of(*KINDS.values()), PLANNED.settings)
    tokens, timesteps = drawn(1, 1, GRID.tokens, CHANNELS), np.full((1, 1), 0.5, np.float32)
    for index, guidance in enumerate(KINDS.values()):
        function(tokens, timesteps, index)
        assert len(session.runner.fed[-1]["text"]) == 1 + guidance.uses_cfg + guidance.uses_stg


def test_blocks_that_a_step_lists_without_stg_are_not_skipped():
    tokens, timesteps = drawn(1, 1, GRID.tokens, CHANNELS), np.full((1, 1), 0.5, np.float32)
    _, session = velocity_of(Guidance(3.0, skip_blocks=(0, 1)), text_of(1), tokens, timesteps)
    assert session.runner.fed[0]["skip_mask"].all()


def test_a_transformer_without_skip_mask_is_not_fed_one():
    session = session_of(transformer(CHANNELS, TEXT_CHANNELS, WIDTH), by_rows)
    function = velocity_function(session, text_of(1), ROTATION, steps_of(KINDS["cfg"]), PLANNED.settings)
    function(drawn(1, 1, GRID.tokens, CHANNELS), np.full((1, 1), 0.5, np.float32), 0)
    assert "skip_mask" not in session.runner.fed[0]


# --- whole passes ---------------------------------------------------------------------------------


class Draws:
    """Draws noise by name, and notes every draw."""

    def __init__(self):
        self.noise, self.notes = SeededNoise(7), []

    def __call__(self, name, shape):
        self.notes.append((name, shape))
        return self.noise.draw(name, shape)


def towards(data):
    """Returns a transformer whose velocity leads every row straight to `data` (N, C), from any state."""

    def velocity(feeds):
        timesteps = timesteps_of(feeds["sinusoid"])[..., None]
        way = (feeds["latents"] - data) / np.where(timesteps > 0, timesteps, 1)
        return {"velocity": way.astype(np.float32)}

    return velocity


def run(version, number, data, start=None, **changes):
    """Runs one pass of a release; returns its steps, feeds, draws, start (noise by default) and plan."""
    planned = plan(default_request(version, "a cat", 7), version)
    one = replace(planned.passes[number], grid=GRID)
    stg_layers = version.transformer.layers if version.uses_stg else 0
    session, draw = session_of(transformer(CHANNELS, TEXT_CHANNELS, WIDTH, stg_layers), towards(data)), Draws()
    if start is None:
        level = one.sigmas[0]
        tokens = (1 - level) * data + level * drawn(9, GRID.tokens, CHANNELS)
        start = Conditioned(tokens[None], COORDS, None, 0)
    steps = list(make_latents(session, text_of(1), ROPE, start, one, replace(planned.settings, **changes), draw))
    return steps, session.runner.fed, draw, start, one


@EVERY_PASS
def test_a_transformer_that_knows_the_data_is_led_to_it_by_every_pass_of_every_version(version, number):
    data = drawn(2, GRID.tokens, CHANNELS)
    steps, fed, _, _, one = run(version, number, data)
    assert len(steps) == len(fed) == len(one.sigmas)
    assert steps[-1].sigma == 0
    np.testing.assert_allclose(steps[-1].tokens[0], data, atol=1e-3)


def test_every_step_has_the_rows_and_the_noise_level_that_its_pass_says():
    for version, number in PASSES:
        _, fed, _, _, one = run(version, number, drawn(2, GRID.tokens, CHANNELS))
        for feeds, sigma, guidance in zip(fed, one.sigmas, one.guidance, strict=True):
            rows, case = 1 + (guidance.cfg_scale > 1) + (guidance.stg_scale > 0), f"{version.name} {number} {sigma}"
            expected = sinusoid_of(np.full((rows, 1), sigma))
            np.testing.assert_array_equal(feeds["sinusoid"], expected, case, strict=True)


def test_only_a_stochastic_pass_draws_noise_between_its_steps():
    shape = (1, GRID.tokens, CHANNELS)
    for version, number in PASSES:
        *_, draw, _, one = run(version, number, drawn(2, GRID.tokens, CHANNELS))
        noted = [(f"step_{n}", shape) for n in range(len(one.sigmas)) if one.stochastic]
        assert draw.notes == noted, (version.name, number)


@EVERY_PASS
def test_given_tokens_have_their_own_noise_level_in_every_row_and_shake_at_every_step(version, number):
    """There are two extra tokens in front; of all tokens, some are conditioned fully and some in part."""
    count = GRID.tokens + 2
    mask = np.array([1, 0.5] + [0] * (GRID.tokens - 2) + [1, 0.3], np.float32)[None]
    start = Conditioned(drawn(9, 1, count, CHANNELS), drawn(8, 1, 3, count), mask, 2)
    data = drawn(2, count, CHANNELS)
    steps, fed, draw, _, one = run(version, number, data, start, image_noise_scale=0.2)
    names = [name for n in range(len(one.sigmas)) for name in [f"image_{n}"] + [f"step_{n}"] * one.stochastic]
    assert draw.notes == [(name, (1, count, CHANNELS)) for name in names]
    for n, (feeds, sigma) in enumerate(zip(fed, one.sigmas, strict=True)):
        for name, array in ROPE.rotation(start.coords, WIDTH)._asdict().items():
            np.testing.assert_array_equal(feeds[name], array)
        for row in range(len(feeds["sinusoid"])):
            np.testing.assert_array_equal(feeds["sinusoid"][row], sinusoid_of(np.minimum(sigma, 1 - mask[0])))
            shaken = start.tokens[0] + np.float32(0.2) * draw.noise.draw(f"image_{n}", start.tokens.shape)[0] * sigma**2
            np.testing.assert_allclose(feeds["latents"][row][mask[0] == 1], shaken[mask[0] == 1], atol=1e-6)
    joined = 1 - mask[0] >= one.sigmas[-1]  # sigma never falls to the noise level of the others
    np.testing.assert_allclose(steps[-1].tokens[0][joined], data[joined], atol=1e-3)
    np.testing.assert_array_equal(
        steps[-1].tokens[0][~joined & (mask[0] < 1)], start.tokens[0][~joined & (mask[0] < 1)]
    )


def test_without_noise_on_images_nothing_is_drawn_for_them_and_wholly_given_tokens_stay():
    mask = np.array([1] * 6 + [0] * 6, np.float32)[None]
    start = Conditioned(drawn(9, 1, GRID.tokens, CHANNELS), COORDS, mask, 0)
    steps, _, draw, _, _ = run(DEMO, 0, drawn(2, GRID.tokens, CHANNELS), start, image_noise_scale=0.0)
    assert draw.notes == []
    for step in steps:
        np.testing.assert_array_equal(step.tokens[0, :6], start.tokens[0, :6])
