"""Laws of what is found out about the processor: read as Linux tells it, and measured once."""

import json

import pytest

from ltx_runtime.sessions import processor
from ltx_runtime.sessions.processor import bf16_speedup, memory_sizes, processor_name


def test_memory_and_processor_are_read_as_linux_tells_them(tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       2048 kB\nMemAvailable:    1024 kB\nHugePages_Total:       0\n")
    assert memory_sizes(told) == {"MemTotal": 2 << 20, "MemAvailable": 1 << 20}
    told.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7\nmodel name\t: other\n")
    assert processor_name(told) == "AMD EPYC 7"


def test_where_linux_tells_nothing_the_architecture_is_told(tmp_path):
    assert memory_sizes(tmp_path / "none") == {}
    assert processor_name(tmp_path / "none") != ""


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Gives a cache of its own, and a measurement that takes the next of a list of speedups; returns the list."""
    speedups = [2.0, 3.0, 4.0]
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processor, "_measured", lambda: speedups.pop(0))
    monkeypatch.setattr(processor.metadata, "version", lambda package: f"1.0 of {package}")
    return speedups


def test_a_processor_is_measured_once_for_each_version_of_the_library(measured, monkeypatch):
    assert [bf16_speedup(), bf16_speedup()] == [2.0, 2.0]
    monkeypatch.setattr(processor.metadata, "version", lambda package: "2.0")
    assert bf16_speedup() == 3.0
    monkeypatch.setattr(processor, "processor_name", lambda: "another")
    assert bf16_speedup() == 4.0


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": "b"}', '{"a": null}'])
def test_a_damaged_measurement_is_made_again(measured, tmp_path, content):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bf16.json").write_text(content)
    assert [bf16_speedup(), bf16_speedup()] == [2.0, 2.0]
    assert list(json.loads((tmp_path / "cache" / "bf16.json").read_text()).values()) == [2.0]


def test_without_a_place_to_keep_it_every_call_measures(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("LTX_CACHE", "")
    assert [bf16_speedup(), bf16_speedup()] == [2.0, 3.0]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "file"))  # no folder can be made there
    assert bf16_speedup() == 4.0


def test_the_measurement_is_a_ratio_of_times_or_nothing_without_bf16():
    pytest.importorskip("openvino")
    assert processor._measured() == 0 or 0.05 < processor._measured() < 50
