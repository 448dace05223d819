"""Tiny releases that are exported once for all tests of the exporter."""

from collections.abc import Callable
from functools import cache

import pytest
from samples.tiny import Exported, export_tiny

from ltx_export.graphs.precision import PRECISIONS

# One release of each VAE generation, with and without STG, with both remainders of the width modulo 6.
EVERY_PRECISION = ("0.9.0", "0.9.1", "0.9.8-13b-distilled")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Returns the complete folder of a tiny release, by name; tests must not change it."""

    @cache
    def of(name: str) -> Exported:
        precisions = tuple(PRECISIONS) if name in EVERY_PRECISION else ("fp32",)
        return export_tiny(name, tmp_path_factory.mktemp(name), precisions)

    return of
