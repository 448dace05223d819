"""Laws of the denoising loop: exact velocities reach the data, given tokens stay, steps run only on request."""

import zlib

import numpy as np
import pytest
from oracles.golden_files import golden

from ltx_runtime.sampling.denoise import denoise
from ltx_runtime.sampling.schedule import linear_quadratic, sigmas_of
from ltx_runtime.spec.versions import VERSIONS

SHAPE = (2, 6, 4)
SIGMAS = np.array([1, 0.8, 0.5, 0.2], np.float32)
# Every kind of token: generated, conditioned in part, conditioned fully.
MASK = np.array([[0, 0.25, 0.6, 1, 1, 0.95]], np.float32)
PASSES = [
    pytest.param(v, one, id=f"{v.name}_pass_{i + 1}") for v in VERSIONS.values() for i, one in enumerate(v.passes)
]
EVERY_PASS = pytest.mark.parametrize(("version", "one"), PASSES)
EVERY_STEP = pytest.mark.parametrize("stochastic", [False, True], ids=["euler", "stochastic"])


def drawn(name: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


class Diary:
    """Draws noise by name, computes velocities, and keeps all draws and calls in order."""

    def __init__(self, velocity=lambda tokens, index: drawn(f"velocity_{index}")):
        self.velocity, self.notes, self.seen, self.timesteps = velocity, [], [], []

    def draw(self, name, shape):
        self.notes.append((name, shape))
        return drawn(name, shape)

    def velocity_of(self, tokens, timesteps, index):
        self.notes.append(("velocity", index))
        self.seen.append(tokens)
        self.timesteps.append(timesteps)
        return self.velocity(tokens, index)


def run(diary: Diary, tokens=None, sigmas=SIGMAS, **options):
    tokens = drawn("start") if tokens is None else tokens
    return list(denoise(tokens, sigmas, diary.velocity_of, diary.draw, **options))


@EVERY_PASS
def test_a_constant_velocity_carries_noise_to_data_on_every_schedule(version, one):
    noise, data = drawn("noise"), drawn("data")
    sigmas = sigmas_of(version.schedule, one, tokens=384)
    start = (1 - sigmas[0]) * data + sigmas[0] * noise
    last = run(Diary(lambda tokens, index: noise - data), start, sigmas)[-1]
    assert last.sigma == 0
    assert last.tokens.dtype == np.float32
    np.testing.assert_allclose(last.tokens, data, atol=1e-5)


@EVERY_PASS
def test_stochastic_steps_lie_between_the_data_and_fresh_noise(version, one):
    data = drawn("data")
    sigmas = sigmas_of(version.schedule, one, tokens=384)
    for step in run(Diary(lambda x, index: (x - data) / sigmas[index]), sigmas=sigmas, stochastic=True):
        expected = (1 - step.sigma) * data + step.sigma * drawn(f"step_{step.index}")
        np.testing.assert_allclose(step.tokens, expected, atol=1e-5)


@EVERY_STEP
@pytest.mark.parametrize("masked", [False, True])
def test_the_loop_repeats_the_official_steps(stochastic, masked):
    kind = "stochastic" if stochastic else "deterministic"
    steps = {name.rpartition("/")[2]: t for name, t in golden("sampler").items() if name.startswith(f"steps_{kind}/")}
    latents, asked = steps["latents"], []

    def draw(name, shape):
        asked.append(name)
        assert shape == latents[0].shape
        return steps["noise"][int(name.removeprefix("step_"))]

    mask = np.zeros((1, latents.shape[2]), np.float32) if masked else None
    diary = Diary(lambda tokens, index: steps["velocity"][index])
    made = list(denoise(latents[0], steps["timesteps"], diary.velocity_of, draw, stochastic=stochastic, mask=mask))
    np.testing.assert_allclose([step.tokens for step in made], latents[1:], atol=5e-6)
    assert asked == [f"step_{i}" for i in range(8)] * stochastic


@EVERY_PASS
def test_there_is_one_step_per_sigma_and_each_tells_the_level_it_reached(version, one):
    sigmas = sigmas_of(version.schedule, one, tokens=384)
    diary = Diary()
    made = run(diary, sigmas=sigmas)
    assert [timesteps.tolist() for timesteps in diary.timesteps] == [[[sigma]] for sigma in sigmas.tolist()]
    assert all(timesteps.dtype == np.float32 for timesteps in diary.timesteps)
    assert [step.index for step in made] == list(range(len(sigmas)))
    assert [step.sigma for step in made] == [*sigmas[1:].tolist(), 0.0]


def test_the_velocity_is_asked_of_the_tokens_that_the_last_step_gave():
    diary, start = Diary(), drawn("start")
    made = run(diary, start)
    assert all(given is gave for given, gave in zip(diary.seen, [start, *(s.tokens for s in made)], strict=False))


def test_nothing_runs_before_a_step_is_asked_for():
    diary = Diary()
    steps = denoise(drawn("start"), SIGMAS, diary.velocity_of, diary.draw)
    assert diary.notes == []
    next(steps)
    steps.close()
    assert diary.notes == [("velocity", 0)]


@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
def test_steps_that_were_kept_do_not_change_later(mask):
    start, diary = drawn("start"), Diary()
    steps = denoise(start, SIGMAS, diary.velocity_of, diary.draw, mask=mask, image_noise_scale=0.15)
    kept = [(step, step.tokens.copy()) for step in steps]
    np.testing.assert_array_equal(start, drawn("start"))
    for step, tokens in kept:
        np.testing.assert_array_equal(step.tokens, tokens)


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({}, (), ()),
        ({"stochastic": True}, (), ("step",)),
        ({"mask": MASK}, (), ()),
        ({"image_noise_scale": 0.15}, (), ()),
        ({"mask": MASK, "image_noise_scale": 0.15}, ("image",), ()),
        ({"mask": MASK * 0, "image_noise_scale": 0.15}, ("image",), ()),  # drawn even if no token needs it
        ({"mask": MASK, "image_noise_scale": 0.15, "stochastic": True}, ("image",), ("step",)),
    ],
    ids=["plain", "stochastic", "mask", "scale", "mask_scale", "mask_of_zeros", "all"],
)
def test_noise_is_drawn_for_all_tokens_on_given_ones_before_a_velocity_and_for_a_step_after_it(options, before, after):
    diary = Diary()
    run(diary, **options)
    expected = []
    for i in range(len(SIGMAS)):
        expected += [(f"{name}_{i}", SHAPE) for name in before]
        expected += [("velocity", i)]
        expected += [(f"{name}_{i}", SHAPE) for name in after]
    assert diary.notes == expected


@EVERY_STEP
def test_tokens_that_are_wholly_given_never_move(stochastic):
    start = drawn("start")
    for step in run(Diary(), start, mask=MASK, stochastic=stochastic):
        np.testing.assert_array_equal(step.tokens[:, 3:5], start[:, 3:5])
        assert (step.tokens[:, 0] != start[:, 0]).all()


def test_the_timestep_of_a_token_is_at_most_what_is_not_given_of_it():
    diary = Diary()
    run(diary, mask=MASK)
    for sigma, timesteps in zip(SIGMAS, diary.timesteps, strict=True):
        assert (timesteps.shape, timesteps.dtype) == (MASK.shape, np.float32)
        np.testing.assert_array_equal(timesteps, np.minimum(sigma, 1 - MASK))


@EVERY_STEP
@pytest.mark.parametrize(("given", "joins"), [(0.0, 0), (0.1, 1), (0.2, 1), (0.4, 2), (0.5, 2), (0.7, 3), (0.9, 4)])
def test_a_softly_given_token_joins_when_sigma_has_fallen_to_what_is_not_given_of_it(stochastic, given, joins):
    start = drawn("start")
    before = start
    for step in run(Diary(), start, mask=np.full((1, 6), given, np.float32), stochastic=stochastic):
        assert np.array_equal(step.tokens, before) is (step.index < joins)
        before = step.tokens


@pytest.mark.parametrize("steps", [4, 8, 20, 40])
def test_a_softly_given_token_loses_the_noise_below_the_level_at_which_it_joins(steps):
    noise, data = drawn("noise"), drawn("data")
    mask = np.array([[0, 0.1, 0.3, 0.5, 0.7, 1]], np.float32)
    level = (1 - mask)[..., None]
    start = (1 - level) * data + level * noise
    sigmas = linear_quadratic(steps)
    joined = np.array([max([s for s in sigmas if s <= one + 1e-6], default=0) for one in level[0, :, 0].astype(float)])
    made = run(Diary(lambda tokens, index: noise - data), start, sigmas, mask=mask)
    left = level - joined[:, None]
    np.testing.assert_allclose(made[-1].tokens, data + left * (noise - data), atol=1e-5)


@EVERY_STEP
def test_a_mask_of_zeros_changes_nothing(stochastic):
    masked, plain = (run(Diary(), mask=mask, stochastic=stochastic) for mask in (MASK * 0, None))
    for one, other in zip(masked, plain, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


@EVERY_STEP
@pytest.mark.parametrize("scale", [0.15, 1.0])
def test_wholly_given_tokens_are_seen_as_they_began_with_noise_that_falls_with_sigma_squared(stochastic, scale):
    start, diary = drawn("start"), Diary()
    made = run(diary, start, mask=MASK, image_noise_scale=scale, stochastic=stochastic)
    for i, (sigma, seen) in enumerate(zip(SIGMAS, diary.seen, strict=True)):
        expected = start + scale * drawn(f"image_{i}") * sigma**2
        np.testing.assert_allclose(seen[:, 3:5], expected[:, 3:5], atol=1e-6)
        np.testing.assert_array_equal(made[i].tokens[:, 3:5], seen[:, 3:5])
        others = [0, 1, 2, 5]
        before = start if i == 0 else made[i - 1].tokens
        np.testing.assert_array_equal(seen[:, others], before[:, others])


@EVERY_STEP
@pytest.mark.parametrize("seed", range(4))
def test_the_loop_is_the_official_rule_written_down_token_by_token(stochastic, seed):
    random = np.random.RandomState(seed)
    mask = random.choice([0, 0.2, 0.35, 0.5, 0.8, 1], (1, 6)).astype(np.float32)
    sigmas = np.sort(random.uniform(0.05, 1, 5)).astype(np.float32)[::-1]
    start = drawn("start")
    made = run(Diary(), start, sigmas, mask=mask, stochastic=stochastic, image_noise_scale=0.15)
    expected = start.astype(np.float64)
    for i, sigma in enumerate(sigmas.astype(np.float64)):
        for n, given in enumerate(mask[0].astype(np.float64)):
            if given > 1 - 1e-6:
                expected[:, n] = start[:, n] + 0.15 * drawn(f"image_{i}")[:, n] * sigma**2
            level = min(sigma, 1 - given)
            lower = max([s for s in [*sigmas, 0] if s < level - 1e-6], default=0)
            if sigma - 1e-6 >= 1 - given:
                continue
            velocity = drawn(f"velocity_{i}")[:, n]
            if stochastic:
                data = expected[:, n] - level * velocity
                expected[:, n] = (1 - lower) * data + lower * drawn(f"step_{i}")[:, n]
            else:
                expected[:, n] -= (level - lower) * velocity
        np.testing.assert_allclose(made[i].tokens, expected, atol=1e-5)
