"""Laws of ports: axes, shapes, and the check of feeds."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from fakes.sessions import feeds_of

from ltx_runtime.spec.components import (
    COMPONENT_NAMES,
    OPTIONAL,
    Component,
    ComponentName,
    Line,
    Port,
    check_feeds,
    line_of,
    temporal_upsampler,
    text_encoder,
    transformer,
    upsampler,
    vae_decoder,
    vae_encoder,
)
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import VERSIONS

COMPONENTS = (
    text_encoder(6),
    transformer(4, 6, 12),
    transformer(4, 6, 12, stg_layers=2),
    vae_decoder(4, timestep=False),
    vae_decoder(4, timestep=True),
    vae_decoder(4, timestep=True, noise_maps={2: (14, 2), 4: (12, 4), 6: (10, 8)}),
    vae_encoder(4),
    upsampler(4),
    temporal_upsampler(4),
)
EVERY_COMPONENT = pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.name}_{len(c.inputs)}")
EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
# As different as possible, so that no axis can stand in for another.
SIZES = {"batch": 2, "tokens": 30, "timesteps": 30, "text_tokens": 7, "frames": 3, "rows": 5, "columns": 4}


@pytest.mark.parametrize(
    ("axis", "line"),
    [
        ("rows", Line("rows", 1, 0)),
        ("2*rows", Line("rows", 2, 0)),
        ("text_tokens+1", Line("text_tokens", 1, 1)),
        ("8*frames-7", Line("frames", 8, -7)),
    ],
)
def test_an_axis_is_read_as_factor_name_and_offset(axis, line):
    assert line_of(axis) == line


@pytest.mark.parametrize("axis", ["", "8", "8*", "*rows", "rows*2", "2*rows-", "2 * rows", "Rows", "rows-x", "-rows"])
def test_what_is_no_axis_is_not_read(axis):
    with pytest.raises(ValueError, match="not an axis"):
        line_of(axis)


@pytest.mark.parametrize("frames", [1, 2, 13])
def test_the_size_of_a_line_is_linear_in_its_name(frames):
    assert line_of("8*frames-7").size(frames) == 8 * frames - 7


@EVERY_COMPONENT
def test_every_component_is_a_known_one_and_names_no_port_twice(component):
    assert component.name in COMPONENT_NAMES
    names = [port.name for port in (*component.inputs, *component.outputs)]
    assert len(set(names)) == len(names)


@EVERY_COMPONENT
def test_every_axis_of_the_outputs_is_known_from_the_inputs(component):
    given = set(component.axis_names())
    assert {line_of(a).name for port in component.outputs for a in port.axes if isinstance(a, str)} <= given


def test_the_components_are_known_in_the_order_of_the_road_and_some_can_be_left_out():
    assert get_args(ComponentName) == COMPONENT_NAMES
    assert {component.name for component in COMPONENTS} == set(COMPONENT_NAMES)
    road = ["text_encoder", "vae_encoder", "transformer", "upsampler", "temporal_upsampler", "vae_decoder"]
    assert list(COMPONENT_NAMES) == road
    assert set(COMPONENT_NAMES) - set(OPTIONAL) == {"transformer", "vae_decoder"}


def test_axis_names_come_in_order_of_appearance_and_once():
    assert transformer(4, 6, 12, stg_layers=2).axis_names() == ("batch", "tokens", "timesteps", "text_tokens")
    assert vae_decoder(4, timestep=True, noise_maps={2: (2, 2)}).axis_names() == ("batch", "frames", "rows", "columns")


def test_a_transformer_has_a_skip_mask_exactly_if_layers_can_be_skipped():
    without, with_mask = transformer(4, 6, 12), transformer(4, 6, 12, stg_layers=28)
    assert with_mask.inputs[:-1] == without.inputs
    assert with_mask.inputs[-1] == Port("skip_mask", (28, 3, "batch"), "float32")


def test_a_decoder_takes_a_noise_port_for_every_block_that_injects_noise():
    component = vae_decoder(128, timestep=True, noise_maps={2: (14, 2), 4: (12, 4), 6: (10, 8)})
    shapes = {port.name: port.shape(SIZES) for port in component.inputs[2:]}
    assert shapes == {"noise_2": (14, 10, 8), "noise_4": (12, 20, 16), "noise_6": (10, 40, 32)}


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(4, 8, 12), Grid(16, 22, 38)])
def test_a_decoder_gives_the_size_that_the_grid_promises(grid):
    sizes = {"batch": 1, "frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
    (video,) = vae_decoder(128, timestep=True).outputs
    assert video.shape(sizes) == (1, 3, grid.num_frames, grid.height, grid.width)


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(4, 8, 12), Grid(16, 22, 38)])
def test_an_encoder_gives_means_and_deviations_on_the_grid_of_its_video(grid):
    sizes = {"batch": 2, "frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
    component = vae_encoder(128)
    (video,), (posterior,) = component.inputs, component.outputs
    assert video.shape(sizes) == (2, 3, grid.num_frames, grid.height, grid.width)
    assert posterior.shape(sizes) == (2, 256, grid.frames, grid.rows, grid.columns)


@pytest.mark.parametrize("grid", [Grid(1, 1, 1), Grid(4, 8, 12), Grid(16, 22, 38)])
def test_an_upsampler_doubles_rows_and_columns_and_a_temporal_one_all_frames_but_the_first(grid):
    sizes = {"batch": 2, "frames": grid.frames, "rows": grid.rows, "columns": grid.columns}
    for component, frames, scale in (
        (upsampler(128), grid.frames, 2),
        (temporal_upsampler(128), 2 * grid.frames - 1, 1),
    ):
        (latents,), (upsampled,) = component.inputs, component.outputs
        assert latents.shape(sizes) == (2, 128, grid.frames, grid.rows, grid.columns)
        assert upsampled.shape(sizes) == (2, 128, frames, scale * grid.rows, scale * grid.columns)


@EVERY_COMPONENT
def test_feeds_that_fit_are_accepted(component):
    check_feeds(component, feeds_of(component.inputs, SIZES))
    check_feeds(component, feeds_of(component.inputs, SIZES | {"timesteps": 1}))


@EVERY_COMPONENT
def test_a_missing_or_unknown_port_is_refused_by_name(component):
    for port in component.inputs:
        feeds = feeds_of(component.inputs, SIZES)
        feeds["other"] = feeds.pop(port.name)
        with pytest.raises(ValueError, match="missing or unknown") as refused:
            check_feeds(component, feeds)
        assert repr(port.name) in str(refused.value)
        assert "'other'" in str(refused.value)


@EVERY_COMPONENT
def test_another_dtype_is_refused(component):
    for port in component.inputs:
        feeds = feeds_of(component.inputs, SIZES)
        feeds[port.name] = feeds[port.name].astype(np.float64)
        with pytest.raises(ValueError, match=rf"{port.name} is float64 .* expected {port.dtype}"):
            check_feeds(component, feeds)


@EVERY_COMPONENT
def test_another_number_of_axes_is_refused(component):
    for port in component.inputs:
        feeds = feeds_of(component.inputs, SIZES)
        feeds[port.name] = feeds[port.name][None]
        with pytest.raises(ValueError, match=rf"{component.name}\.{port.name} is "):
            check_feeds(component, feeds)


def shared(component: Component, port: Port, place: int) -> bool:
    """Tells whether an axis is fixed, or is also determined by another axis of the inputs."""
    axis = port.axes[place]
    if isinstance(axis, int):
        return True
    name = line_of(axis).name
    others = [a for p in component.inputs for a in p.axes if isinstance(a, str) and line_of(a).name == name]
    return len(others) > 1 or name == "timesteps"


@EVERY_COMPONENT
def test_a_size_that_contradicts_another_is_refused(component):
    for port in component.inputs:
        for place in range(len(port.axes)):
            if not shared(component, port, place):
                continue
            shape = list(port.shape(SIZES))
            shape[place] += 1
            feeds = feeds_of(component.inputs, SIZES) | {port.name: np.zeros(shape, port.dtype)}
            with pytest.raises(ValueError, match=r"axis .* is \d+, expected"):
                check_feeds(component, feeds)


def test_the_message_names_axis_size_and_expectation():
    component = transformer(4, 6, 12)
    feeds = feeds_of(component.inputs, SIZES) | {"sines": np.zeros((29, 6), np.float32)}
    with pytest.raises(ValueError, match=r"^transformer\.sines: axis 'tokens' is 29, expected 30$"):
        check_feeds(component, feeds)


def test_a_size_between_two_multiples_is_refused_even_when_it_comes_first():
    component = vae_decoder(4, timestep=False, noise_maps={2: (2, 2)})
    turned = replace(component, inputs=component.inputs[::-1])
    feeds = feeds_of(turned.inputs, SIZES) | {"noise_2": np.zeros((2, 2 * SIZES["rows"] + 1, 8), np.float32)}
    with pytest.raises(ValueError, match=r"axis '2\*rows' is 11, expected 10"):
        check_feeds(turned, feeds)
