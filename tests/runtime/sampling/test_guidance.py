"""Laws of guidance, and golden values of the official formulas."""

import numpy as np
import pytest

from ltx_runtime.sampling.guidance import combine, guidance_at
from ltx_runtime.sampling.schedule import sigmas_of
from ltx_runtime.spec.presets import Guidance
from ltx_runtime.spec.versions import VERSIONS

K = np.arange(1, 13)
ENTRIES = [entry for version in VERSIONS.values() for one in version.passes for entry in one.guidance]
EVERY_ENTRY = pytest.mark.parametrize("entry", dict.fromkeys(ENTRIES), ids=str)


def wave(frequency: float) -> np.ndarray:
    return np.sin(frequency * K).astype(np.float32).reshape(1, 4, 3)


def velocities(seed: int, batch: int = 1) -> list[np.ndarray]:
    return list(np.random.RandomState(seed).standard_normal((3, batch, 5, 4)).astype(np.float32))


@pytest.mark.parametrize(
    ("scales", "first", "total"),
    [
        ((3, 1, 0.7, False), (0.396163, 0.609893, 0.489082, -0.017144), 4.466706),
        ((6, 4, 0.5, True), (1.566384, 2.832612, 3.280002, 2.334987), 12.191917),
        ((8, 4, 0.5, True), (2.143242, 3.686326, 3.962222, 2.475742), 14.755936),
        ((6, 4, 1, True), (2.847050, 5.148539, 5.961712, 4.244060), 22.159958),
        ((1, 2, 1, True), (0.365999, 1.008654, 1.734868, 1.890005), 6.033547),
        ((3, 0, 0.7, False), (0.973802, 1.273407, 0.594638, -0.813630), 7.648492),
    ],
)
def test_three_waves_combine_to_the_known_values(scales, first, total):
    cfg, stg, rescale, star = scales
    guidance = Guidance(cfg, stg, rescale, (0,), star)
    guided = combine(guidance, text=wave(0.7), unconditional=wave(0.5), perturbed=wave(0.9))
    assert guided.dtype == np.float32
    np.testing.assert_allclose(guided.reshape(-1)[:4], first, atol=2e-6)
    assert guided.sum() == pytest.approx(total, abs=2e-5)


def test_without_guidance_the_velocity_is_the_one_with_text():
    text, *_ = velocities(0)
    np.testing.assert_array_equal(combine(Guidance(), text), text)


@EVERY_ENTRY
def test_velocities_that_agree_are_guided_to_themselves(entry):
    text, *_ = velocities(1)
    np.testing.assert_allclose(combine(entry, text, text.copy(), text.copy()), text, rtol=1e-5, atol=1e-6)


@EVERY_ENTRY
def test_guidance_treats_every_sample_of_a_batch_alone(entry):
    text, unconditional, perturbed = velocities(2, batch=3)
    together = combine(entry, text, unconditional, perturbed)
    for i in range(3):
        alone = combine(entry, text[i : i + 1], unconditional[i : i + 1], perturbed[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


@EVERY_ENTRY
def test_guidance_scales_with_its_velocities(entry):
    given = velocities(3)
    twice = combine(entry, *(2 * one for one in given))
    np.testing.assert_allclose(twice, 2 * combine(entry, *given), rtol=1e-4, atol=1e-5)


def test_cfg_goes_from_the_unconditional_velocity_past_the_one_with_text():
    text, unconditional, _ = velocities(4)
    for scale in (1.5, 2, 7):
        guided = combine(Guidance(scale), text, unconditional)
        np.testing.assert_allclose(guided, unconditional + scale * (text - unconditional), atol=2e-5)


def test_cfg_star_ignores_the_length_of_the_unconditional_velocity():
    text, unconditional, _ = velocities(5)
    star = Guidance(6, cfg_star=True)
    np.testing.assert_allclose(
        combine(star, text, unconditional), combine(star, text, 3 * unconditional), rtol=1e-4, atol=1e-5
    )


def test_cfg_star_removes_an_unconditional_velocity_that_is_orthogonal():
    text = np.zeros((1, 2, 2), np.float32)
    unconditional = text.copy()
    text[0, 0, 0], unconditional[0, 1, 1] = 1, 5
    np.testing.assert_array_equal(combine(Guidance(6, cfg_star=True), text, unconditional), 6 * text)


def test_an_unconditional_velocity_of_zero_divides_by_nothing():
    text, *_ = velocities(6)
    guided = combine(Guidance(2, cfg_star=True), text, np.zeros_like(text))
    np.testing.assert_allclose(guided, 2 * text)


def test_full_strength_would_give_the_deviation_of_the_text_so_the_rest_lies_between():
    given = velocities(7)
    before = combine(Guidance(3, 2, 1.0, (0,)), *given)
    after = combine(Guidance(3, 2, 0.7, (0,)), *given)
    expected = 0.7 * given[0].std(ddof=1) + 0.3 * before.std(ddof=1)
    assert after.std(ddof=1) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(after / before, after.flat[0] / before.flat[0], rtol=1e-4)


def test_rescale_does_nothing_without_stg():
    text, unconditional, _ = velocities(8)
    with_rescale, without = (combine(Guidance(3, 0, rescale), text, unconditional) for rescale in (0.5, 1))
    np.testing.assert_array_equal(with_rescale, without)


def test_stg_alone_needs_no_unconditional_velocity():
    text, _, perturbed = velocities(9)
    guided = combine(Guidance(1, 2, skip_blocks=(0,)), text, perturbed=perturbed)
    np.testing.assert_allclose(guided, 3 * text - 2 * perturbed, atol=1e-5)


@EVERY_ENTRY
def test_guidance_leaves_what_it_was_given_untouched(entry):
    given = velocities(10)
    kept = [one.copy() for one in given]
    combine(entry, *given)
    for one, before in zip(given, kept, strict=True):
        np.testing.assert_array_equal(one, before)


@pytest.mark.parametrize("given", [{}, {"perturbed": wave(0.9)}])
def test_a_velocity_that_guidance_needs_can_not_be_left_out(given):
    with pytest.raises(AssertionError):
        combine(Guidance(3, 1, skip_blocks=(0,)), wave(0.7), **given)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [(1.0, "a"), (0.9961, "b"), (0.996, "b"), (0.9959, "c"), (0.5, "c"), (0.4999, "c"), (0.0, "c")],
)
def test_the_entry_in_force_is_the_first_at_or_below_sigma_or_the_last(sigma, expected):
    entries = {"a": Guidance(1, from_sigma=1.0), "b": Guidance(2, from_sigma=0.996), "c": Guidance(3, from_sigma=0.5)}
    assert guidance_at(sigma, tuple(entries.values())) is entries[expected]


def test_a_threshold_holds_for_its_own_float32_value():
    for threshold in (0.996, 0.9933, 0.1, 0.618):
        entries = (Guidance(2, from_sigma=threshold), Guidance(3))
        assert guidance_at(float(np.float32(threshold)), entries) is entries[0]


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_entries_come_into_force_in_their_order_and_never_again(version):
    for one in version.passes:
        sigmas = sigmas_of(version.schedule, one, tokens=384)
        order = [one.guidance.index(guidance_at(float(sigma), one.guidance)) for sigma in sigmas]
        assert order == sorted(order)
