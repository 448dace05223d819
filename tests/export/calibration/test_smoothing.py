"""Laws of smoothing: it changes no exact product, integers are within half a step, and an outlier costs little."""

import numpy as np
import pytest

from ltx_export.calibration.smoothing import Activations, chosen_smoothing, integers_of

K, N = 256, 64


def random(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def seen(x):
    """Returns activations whose ranges come from other tokens than its rows."""
    half = len(x) // 2
    return Activations(np.abs(x[:half]).max(0), x[half:])


def product(x, matrix, smoothing):
    """Multiplies integers with integers, and their scales afterwards."""
    codes, scales = integers_of(matrix, smoothing.factors)
    integers = np.clip(np.rint(x * smoothing.factors / smoothing.step), -128, 127).astype(np.int32)
    return (integers @ codes.T.astype(np.int32)) * (scales * smoothing.step)


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_integers_are_within_half_a_step_of_the_matrix():
    matrix, factors = random(N, K), np.exp(random(K, seed=1))
    matrix[3] = 0
    codes, scales = integers_of(matrix, factors)
    assert codes.dtype == np.int8
    assert (np.abs(codes * scales[:, None] - matrix / factors) <= scales[:, None] * 0.5001).all()
    assert np.abs(codes).max() == 127 and (codes[3] == 0).all()


@pytest.mark.parametrize("outliers", [1, 30, 100])
def test_a_few_large_channels_cost_little(outliers):
    x, matrices = random(200, K), [random(N, K, seed=2), random(3 * N, K, seed=3)]
    x[:, :: K // 4] *= outliers
    smoothing = chosen_smoothing(seen(x), matrices)
    errors = [relative(product(x[100:], matrix, smoothing), x[100:] @ matrix.T) for matrix in matrices]
    np.testing.assert_allclose(errors, smoothing.errors, rtol=1e-3)
    assert max(errors) < 0.02
    np.testing.assert_allclose(np.log(smoothing.factors).mean(), 0, atol=1e-5)


def test_what_exceeds_its_range_on_another_prompt_shows_in_the_error():
    x, matrix = random(200, K), random(N, K, seed=2)
    usual = chosen_smoothing(seen(x), [matrix])
    x[100:] *= 3
    assert chosen_smoothing(seen(x), [matrix]).errors[0] > 10 * usual.errors[0]


def test_channels_that_were_never_used_do_no_harm():
    x, matrix = random(200, K), random(N, K, seed=2)
    x[:, 5], matrix[:, 9] = 0, 0
    smoothing = chosen_smoothing(seen(x), [matrix])
    assert np.isfinite(smoothing.factors).all() and max(smoothing.errors) < 0.02
    silent = chosen_smoothing(seen(np.zeros_like(x)), [matrix])
    assert silent.step > 0 and silent.errors == (0.0,)
