"""Tiny releases that are exported once for all tests of the exporter."""

from collections.abc import Callable

import pytest
from samples.tiny import Exported, export_tiny

from ltx_export.graphs.precision import PRECISIONS

# One release of each VAE generation, with and without STG, with both remainders of the width modulo 6.
EVERY_PRECISION = ("0.9.0", "0.9.1", "0.9.8-13b-distilled")


@pytest.fixture(scope="session")
def exported() -> Callable[[str], Exported]:
    """Returns the complete folder of a tiny release, by name; tests must not change it."""
    return lambda name: export_tiny(name, tuple(PRECISIONS) if name in EVERY_PRECISION else ("fp32",))
