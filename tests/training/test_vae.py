"""The linear code against numpy's principal components, the networks that start from it, and the optimizer's laws."""

import numpy as np
import pytest
import torch

from ltx_export.models.vae_blocks import Conv
from ltx_runtime.spec.encodings import sinusoid_of
from training.clips import Size, drawn_clips, windows
from training.optimizing import Plan, optimize, orthogonal
from training.stages import COMPONENTS, demo_vae
from training.vae.decoder import decoder_losses, psnr, start_as_inverse
from training.vae.encoder import encoder_losses, means_of, start_from_components
from training.vae.least_squares import fit_convolution
from training.vae.linear_code import LinearCode, fit_code

KEPT = COMPONENTS[-1]
CLIPS = 48


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return drawn_clips(tmp_path_factory.mktemp("clips"), Size(96, 128), CLIPS, seed=5)


@pytest.fixture(scope="module")
def code(clips):
    return fit_code(clips, CLIPS, COMPONENTS, weight_of_things=0.0)


@pytest.fixture(scope="module")
def vae(clips, code):
    torch.manual_seed(0)
    encoder, decoder = (network.requires_grad_(True) for network in demo_vae())
    start_from_components(encoder.encoder, code, clips)
    start_as_inverse(decoder.decoder, encoder.encoder, code, clips)
    return encoder.encoder, decoder.decoder


def cells_of(video):
    """Returns the cells of a clip as rows (cells, 8 * 32 * 32 * 3); the first is eight times the first frame."""
    whole = np.concatenate([np.repeat(video[:, :, :1], 7, axis=2), video], axis=2)[0]
    channels, frames, height, width = whole.shape
    cells = whole.reshape(channels, frames // 8, 8, height // 32, 32, width // 32, 32)
    return cells.transpose(1, 3, 5, 0, 2, 4, 6).reshape(frames * height * width // 2**13, -1)


def decoded(decoder, latents):
    return decoder(latents, torch.from_numpy(sinusoid_of(np.zeros(1, np.float32))), [])


def test_a_code_loses_little_more_than_the_principal_components_of_whole_cells(clips, code):
    rows = np.concatenate([cells_of(video.numpy()) for video in clips.some(CLIPS)]).astype(np.float64)
    rows -= rows.mean(0)
    energies = np.linalg.eigvalsh(rows @ rows.T)[::-1]
    least = energies[KEPT:].sum()  # no linear code of as many numbers loses less
    lost = sum(float((code.decode(code.encode(video)) - video)[:, :, 1:].square().sum()) for video in clips.some(CLIPS))
    assert 0.5 * least < lost < 3 * least


def test_components_are_not_correlated_and_vary_as_their_deviations_say(clips, code):
    rows = torch.cat([code.encode(video).movedim(1, -1).reshape(-1, KEPT) for video in clips.some(CLIPS)])
    second = rows.T @ rows / len(rows)
    assert torch.allclose(second.diagonal(), code.deviations, rtol=1e-3)
    deviations = code.deviations.sqrt()
    assert (second / torch.outer(deviations, deviations) - torch.eye(KEPT)).abs().max() < 0.05


def test_a_code_outlives_its_tensors(code, clips):
    again, video = LinearCode.of(code.tensors()), clips.video(3)
    assert torch.equal(again.encode(video), code.encode(video))


def test_a_decoder_starts_near_the_inverse_of_the_code(vae, code, clips):
    encoder, decoder = vae
    with torch.no_grad():
        for video in clips.some(4):
            linear, drawn = code.decode(code.encode(video)), decoded(decoder, means_of(encoder, video))
            assert psnr(drawn, linear) > 20


def test_an_encoder_starts_near_the_code(vae, code, clips):
    encoder, _ = vae
    with torch.no_grad():
        for video in clips.some(4):
            wanted, found = code.encode(video), encoder(video)[:, :KEPT]
            energy = code.deviations[:, None, None, None]  # of pixels, in each component
            assert (energy * (found - wanted).square()).sum() < 0.05 * (energy * wanted.square()).sum()


@pytest.mark.parametrize("causal", [True, False])
def test_a_convolution_is_found_from_what_it_computes(causal):
    generator = torch.Generator().manual_seed(1)
    wanted, found = (Conv(3, 5, "zeros", causal=causal) for _ in range(2))
    inputs = [torch.randn(1, 3, 3, 6, 7, generator=generator) for _ in range(6)]
    with torch.no_grad():
        fit_convolution(found, ((x, wanted(x)[:, :4]) for x in inputs), ridge=1e-9)
        assert torch.allclose(found.conv.weight[:4], wanted.conv.weight[:4], atol=1e-4)
        assert torch.allclose(found.conv.bias[:4], wanted.conv.bias[:4], atol=1e-4)
        assert not found.conv.weight[4].any()


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8)])
def test_orthogonal_keeps_singular_vectors_and_evens_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for matrix, result in zip(matrices, orthogonal(matrices), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        aligned = left.T @ result @ right.T
        assert (aligned - torch.diag(aligned.diagonal())).abs().max() < 1e-4
        assert 0.6 < aligned.diagonal().min() < aligned.diagonal().max() < 1.3


def test_a_plan_warms_up_and_falls_to_the_least_rate():
    plan = Plan(steps=1000, rate=1.0, other_rate=1.0)
    factors = [plan.factor(step) for step in range(1000)]
    assert factors[0] == 0.01 and factors[99:400] == [1.0] * 301
    assert factors == sorted(factors[:100]) + sorted(factors[100:], reverse=True)
    assert 0.03 < factors[-1] < 0.04


def test_windows_show_things_and_are_the_same_for_a_seed(clips):
    batches = [windows((clips,), (1.0,), 8, 64, 9, (1, step)) for step in (5, 5, 6)]
    video, masks = batches[0]
    assert video.shape == (8, 3, 9, 64, 64) and masks.shape == (8, 1, 9, 64, 64)
    assert torch.equal(video, batches[1][0]) and not torch.equal(video, batches[2][0])
    assert masks.mean() > 1.2 * np.mean(clips.masks[:, :9] / 255)


def is_kernel(name, parameter):
    return parameter.ndim >= 4


@pytest.mark.slow
def test_the_losses_of_encoder_and_decoder_fall(vae, code, clips, tmp_path):
    encoder, decoder = vae

    def batches(step):
        return windows((clips,), (1.0,), 4, 96, 17, (7, step))

    for network, losses, rate in (
        (encoder, encoder_losses(encoder, code, batches), 0.0005),
        (decoder, decoder_losses(decoder, encoder, batches, 3), 0.002),
    ):
        plan = Plan(steps=200, rate=rate, other_rate=5e-4)
        parameters = dict(network.named_parameters())
        _, curve = optimize(parameters, is_kernel, plan, losses, lambda line: None, tmp_path / str(rate))
        losses_of_reports = [row["loss"] for row in curve]
        assert np.mean(losses_of_reports[-30:]) < 0.9 * np.mean(losses_of_reports[:30])


def test_a_stage_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    def train(steps_before_the_stop, path):
        torch.manual_seed(3)
        layer, losses = torch.nn.Linear(6, 4), []

        def losses_at(step):
            if step == steps_before_the_stop:
                raise KeyboardInterrupt
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            losses.append(step)
            return {"loss": (layer(x) - x[:, :4].sin()).square().mean()}

        plan, parameters = Plan(steps=300, rate=0.02, other_rate=1e-3), dict(layer.named_parameters())
        return optimize(parameters, lambda name, p: p.ndim == 2, plan, losses_at, lambda line: None, path)

    weights, curve = train(None, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(200, tmp_path / "stopped")
    again, curve_again = train(None, tmp_path / "stopped")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert curve == curve_again and curve[-1]["step"] == 300
    assert curve[-1]["loss"] < 0.1 * curve[0]["loss"]
