"""Laws of limits on engines: a size is that of the finished video, and the grids of its passes are served."""

from ltx_export.engines.command import limits_of
from ltx_runtime.folder.profiles import profiles
from ltx_runtime.spec.components import vae_decoder
from ltx_runtime.spec.geometry import Grid
from ltx_runtime.spec.versions import find_version

RELEASE = "0.9.8-13b-distilled"


def test_sizes_narrow_the_engines_to_the_grids_of_the_versions_passes():
    one, two = find_version("0.9.5"), find_version(RELEASE)
    assert limits_of(one, (None, None, None), None) is None
    assert limits_of(one, (704, 1216, 121), None).grids == (Grid(16, 22, 38),)
    static = limits_of(one, (None, None, None), "704x1216x121")
    assert static.exact and static.grids == (Grid(16, 22, 38),)
    # The passes of 704x1216 run at two thirds of it, 14x25 latents, and at twice that.
    assert limits_of(two, (None, None, None), "704x1216x121").grids == (Grid(16, 14, 25), Grid(16, 28, 50))


def test_what_is_left_out_of_the_largest_size_is_not_narrowed():
    version = find_version("0.9.5")
    component = vae_decoder(4, timestep=True)
    everything = profiles(component)
    frames = profiles(component, limits_of(version, (None, None, 97), None))
    assert {name: max(one[name].max for one in frames) for name in ("rows", "columns")} == {
        name: max(one[name].max for one in everything) for name in ("rows", "columns")
    }
    assert max(one["frames"].max for one in frames) == 13
    rows = profiles(component, limits_of(version, (512, None, None), None))
    assert max(one["rows"].max for one in rows) == 16
    assert max(one["columns"].max for one in rows) == 50
    assert max(one["frames"].max for one in rows) == 33


def test_sizes_for_a_single_pass_are_those_asked_for_whatever_the_version_has():
    version = find_version(RELEASE)
    static = limits_of(version, (None, None, None), "704x1216x121", single_pass=True)
    assert static.exact and static.grids == (Grid(16, 22, 38),)
    assert limits_of(version, (704, 1216, 121), None, single_pass=True).grids == (Grid(16, 22, 38),)
