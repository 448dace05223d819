"""Encoder and decoder together: latents that are still near the linear code, but say more than it could."""

from __future__ import annotations

from collections.abc import Callable

from ltx_export.models.vae import Decoder
from ltx_export.models.vae_encoder import Encoder
from training.clips import Batches
from training.optimizing import Losses
from training.vae.decoder import drawing_loss, drawn_with_noise, psnr
from training.vae.encoder import distance_from_code, moments_of
from training.vae.linear_code import LinearCode

WEIGHT_OF_CODE = 0.05  # how much the distance of latents from the code counts beside that of what is drawn


def vae_losses(
    encoder: Encoder, decoder: Decoder, code: LinearCode, batches: Batches, seed: int
) -> Callable[[int], Losses]:
    """Returns the function that computes the loss of a step, the PSNR in dB, and how much of the code is wrong."""

    def losses_at(step: int) -> Losses:
        video, masks = batches(step)
        moments = moments_of(encoder, video)
        distance = distance_from_code(moments, code.encode(video))
        drawn = drawn_with_noise(decoder, moments[:, :-1], seed + step)
        loss = drawing_loss(drawn, video, masks) + WEIGHT_OF_CODE * distance["loss"]
        return {"loss": loss, "psnr": psnr(drawn, video), "wrong": distance["wrong"]}

    return losses_at
