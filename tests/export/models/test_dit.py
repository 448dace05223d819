"""The transformer against the official package's golden values, diffusers, and published numbers."""

import pytest
import torch
from oracles.encodings import encoded
from oracles.golden_files import golden
from oracles.networks import (
    RELATIVE_L2,
    assert_published,
    diffusers_dit,
    diffusers_dit_key,
    distance,
    filled,
    golden_settings,
    normal,
    shapes_of,
    sine,
    sine_weights,
    tensor,
)
from oracles.weight_rule import weight

from ltx_export.models.dit import DitConfig, Transformer
from ltx_export.networks.header import transformer_config
from ltx_runtime.spec.geometry import Grid, coords_of
from ltx_runtime.spec.presets import STG_MODES

GOLDEN = golden("dit")
RECORDED = ("latents", "timestep", "coords", "text", "text_mask")
CASES = sorted({key.split("/")[0] for key in GOLDEN})
# The official package's strategies, in the order of the skip mask's rows.
STRATEGIES = ("AttentionValues", "AttentionSkip", "TransformerBlock")
GRID = Grid(2, 2, 3)
SMALL = DitConfig(layers=2, heads=2, head_dim=16, channels=8, text_channels=24)

# width: [(causal, timestep of the first six tokens, sum, mean magnitude, first six values, last three values)]
PUBLISHED = {
    12: [
        (True, 0.9, 14.970342, 0.732420, (-0.004600, 0.383483, 0.277917, -0.075266, 2.091567, -0.574059),
         (0.228735, 0.418298, 0.003947)),
        (False, 0.9, 14.970532, 0.732417, (-0.004453, 0.383326, 0.277855, -0.075075, 2.091614, -0.574061),
         (0.228825, 0.418316, 0.003848)),
        (True, 0.0, 14.478712, 0.685264, (0.934213, 0.186827, -0.555082, 0.569599, 1.057798, 0.320381),
         (0.222081, 0.401379, 0.019706)),
    ],
    20: [
        (True, 0.9, -7.825653, 0.861295, (-1.207377, -1.375166, 0.198374, 1.737303, 1.461789, 0.239443),
         (-1.529406, -0.042317, 1.680436)),
        (False, 0.9, -7.826347, 0.861461, (-1.203829, -1.376783, 0.193407, 1.734565, 1.467922, 0.239414),
         (-1.527266, -0.036425, 1.683463)),
        (True, 0.0, -3.625276, 1.056186, (1.413607, 0.846326, -0.474152, -1.074057, 2.222339, 0.504489),
         (-1.530015, -0.043022, 1.680426)),
    ],
}  # fmt: skip
PUBLISHED_CASES = [(width, *case) for width, cases in PUBLISHED.items() for case in cases]


@pytest.mark.parametrize("case", CASES)
def test_velocities_are_those_of_the_official_package(case):
    config = transformer_config(golden_settings("dit", case)["transformer"])
    module = filled(Transformer(config), weight)
    latents, timestep, coords, text, mask = (tensor(GOLDEN[f"{case}/{name}"]) for name in RECORDED)
    inputs = [latents, *encoded(config, timestep, coords), text, mask]
    strategy = golden_settings("dit", case)["skip_layer_strategy"]
    if strategy:
        recorded = tensor(GOLDEN[f"{case}/skip_mask"])  # (layers, batch), for this strategy alone
        inputs.append(torch.ones(config.layers, len(STRATEGIES), recorded.shape[1]))
        inputs[-1][:, STRATEGIES.index(strategy)] = recorded
    assert distance(module(*inputs), GOLDEN[f"{case}/velocity"]) <= RELATIVE_L2


def test_every_strategy_is_recorded_and_skips_in_another_way():
    assert {golden_settings("dit", case)["skip_layer_strategy"] for case in CASES} == {None, *STRATEGIES}
    assert len(STRATEGIES) == len(STG_MODES)
    rows = [GOLDEN[f"{case}/skip_mask"] for case in CASES if f"{case}/skip_mask" in GOLDEN]
    assert all(mask.min() == 0 and mask.max() == 1 for mask in rows)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_velocities_are_those_of_diffusers(head_dim, causal, per_token, batch):
    config = DitConfig(layers=3, heads=2, head_dim=head_dim, channels=16, text_channels=24)
    ours = filled(Transformer(config), weight)
    theirs = diffusers_dit(config)
    theirs.load_state_dict({diffusers_dit_key(key): value for key, value in ours.state_dict().items()})
    grid = Grid(3, 4, 5)
    latents, text = normal(1, batch, grid.tokens, 16), normal(2, batch, 9, 24)
    mask = (torch.arange(9) < 9 - torch.arange(batch)[:, None]).to(torch.int64)
    timestep = torch.rand((batch, grid.tokens if per_token else 1), generator=torch.Generator().manual_seed(3))
    coords = tensor(coords_of(grid, 25, causal=causal)).expand(batch, -1, -1)
    with torch.no_grad():
        expected = theirs(latents, text, 1000 * timestep, mask, video_coords=coords, return_dict=False)[0]
    assert distance(ours(latents, *encoded(config, timestep, coords), text, mask), expected) <= RELATIVE_L2


@pytest.mark.parametrize(("width", "causal", "first_t", "total", "mean", "first", "last"), PUBLISHED_CASES)
def test_velocities_are_the_published_ones(width, causal, first_t, total, mean, first, last):
    config = DitConfig(layers=2, heads=2, head_dim=width // 2, channels=4, text_channels=6)
    module = Transformer(config)
    theirs = {diffusers_dit_key(name): name for name, _ in module.named_parameters()}
    shapes = {key: tuple(module.get_parameter(name).shape) for key, name in theirs.items()}
    drawn = sine_weights(shapes, lambda key: "norm" in key and key.endswith("weight"))
    module.load_state_dict({theirs[key]: values for key, values in drawn.items()})
    timestep = torch.full((1, 12), 0.9)
    timestep[:, :6] = first_t
    velocity = module.requires_grad_(False)(
        sine((1, 12, 4), 0.7, 0.1),
        *encoded(config, timestep if first_t == 0 else timestep[:, :1], tensor(coords_of(GRID, 25, causal=causal))),
        sine((1, 5, 6), 0.3, 0.2),
        torch.tensor([[1, 1, 1, 0, 0]]),
    )
    assert velocity.shape == (1, 12, 4)
    assert_published(velocity, total, mean, first, last)


def test_one_timestep_for_all_tokens_is_the_same_timestep_for_each():
    module = filled(Transformer(SMALL), weight)
    latents, text, mask = normal(1, 1, 12, 8), normal(2, 1, 5, 24), torch.ones(1, 5).long()
    coords = tensor(coords_of(GRID, 24, causal=True))
    one, each = (module(latents, *encoded(SMALL, torch.full((1, t), 0.7), coords), text, mask) for t in (1, 12))
    assert distance(each, one) <= RELATIVE_L2


def two_rows_of_one_request() -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Returns a transformer of two layers, and its inputs without the skip mask."""
    module = filled(Transformer(SMALL), weight)
    latents, text = normal(1, 1, 12, 8).repeat(2, 1, 1), normal(2, 1, 5, 24).repeat(2, 1, 1)
    sinusoid, *rotation = encoded(SMALL, torch.full((2, 1), 0.7), tensor(coords_of(GRID, 24, causal=True)))
    return module, [latents, sinusoid, *rotation, text, torch.ones(2, 5).long()]


@pytest.mark.parametrize("mode", range(len(STG_MODES)), ids=STG_MODES)
@pytest.mark.parametrize("skipped", [(), (0,), (1,), (0, 1)])
def test_only_rows_with_a_zero_in_the_skip_mask_are_changed(skipped, mode):
    module, inputs = two_rows_of_one_request()
    skip_mask = torch.ones(2, len(STG_MODES), 2)
    skip_mask[list(skipped), mode, 1] = 0
    plain, masked = module(*inputs), module(*inputs, skip_mask)
    assert torch.equal(plain[0], masked[0])
    assert torch.equal(plain[1], masked[1]) == (skipped == ())


def test_a_transformer_whose_blocks_are_all_skipped_is_one_without_blocks():
    module, inputs = two_rows_of_one_request()
    skip_mask = torch.ones(2, len(STG_MODES), 2)
    skip_mask[:, STG_MODES.index("transformer_block"), 1] = 0
    masked = module(*inputs, skip_mask)
    module.transformer_blocks = torch.nn.ModuleList()
    assert torch.equal(masked[1], module(*inputs)[1])


@pytest.mark.parametrize("others", [(), (0,), (1,), (0, 1)])
def test_of_several_ways_to_skip_the_one_that_skips_most_decides(others):
    """Modes are ordered this way because a block that returns its input does not depend on its attention."""
    module, inputs = two_rows_of_one_request()
    last = max(others, default=0) + 1
    both, alone = torch.ones(2, len(STG_MODES), 2), torch.ones(2, len(STG_MODES), 2)
    both[1, [*others, last], 1] = 0
    alone[1, last, 1] = 0
    assert torch.equal(module(*inputs, both), module(*inputs, alone))


def test_layers_may_be_skipped_in_different_ways_and_rows_too():
    module, inputs = two_rows_of_one_request()
    skip_mask = torch.ones(2, len(STG_MODES), 2)
    skip_mask[0, 0, 0] = skip_mask[1, 2, 0] = skip_mask[0, 2, 1] = skip_mask[1, 1, 1] = 0
    masked = module(*inputs, skip_mask)
    latents, sinusoid, cosines, sines, text, mask = inputs
    for row in range(2):
        row_alone = latents[[row]], sinusoid[[row]], cosines, sines, text[[row]], mask[[row]]
        alone = module(*row_alone, skip_mask[:, :, [row]])
        assert distance(masked[[row]], alone) <= RELATIVE_L2


def test_every_parameter_has_its_counterpart_in_diffusers():
    ours = shapes_of(Transformer(SMALL).named_parameters())
    assert {diffusers_dit_key(key): shape for key, shape in ours.items()} == shapes_of(
        diffusers_dit(SMALL).state_dict().items()
    )
