"""Laws of what is found out about the processor: read as Linux tells it, and measured once."""

import json
import os
from pathlib import Path

import pytest

from ltx_runtime.sessions import processor
from ltx_runtime.sessions.processor import free_memory, memory_bytes, processor_name, speedups, total_memory

KEY = f"{processor_name()}, {os.cpu_count()} cores, OpenVINO 1.0 of openvino"
DAMAGED = tuple(f'{{"{KEY}": {row}}}' for row in ("{}", '{"q8": NaN}', '{"q8": 0}', '{"bf16": 2}'))
ONE, TWO, THREE = {"bf16": 2.0, "q8": 3.5}, {"q8": 0.5}, {"bf16": 4.0, "q8": 1.0}


def test_the_processor_is_read_as_linux_tells_it(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7\nmodel name\t: other\n")
    assert processor_name(told) == "AMD EPYC 7"


def test_where_linux_tells_nothing_the_architecture_is_told(tmp_path):
    assert processor_name(tmp_path / "none") != ""


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Gives a cache of its own, and a measurement that takes the next of a list of speedups; returns the list."""
    results = [ONE, TWO, THREE]
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(processor, "_measured", lambda: results.pop(0))
    monkeypatch.setattr(processor.metadata, "version", lambda package: f"1.0 of {package}")
    return results


def test_a_processor_is_measured_once_for_each_version_of_the_library(measured, monkeypatch):
    assert [speedups(), speedups()] == [ONE, ONE]
    monkeypatch.setattr(processor.metadata, "version", lambda package: "2.0")
    assert speedups() == TWO
    monkeypatch.setattr(processor, "processor_name", lambda: "another")
    assert speedups() == THREE


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": 1}', '{"a": {"bf16": null}}', *DAMAGED])
def test_a_damaged_measurement_is_made_again(measured, tmp_path, content):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "speedups.json").write_text(content)
    assert [speedups(), speedups()] == [ONE, ONE]
    assert list(json.loads((tmp_path / "cache" / "speedups.json").read_text()).values()) == [ONE]


def test_the_machine_s_memory_is_told_on_every_system():
    total, free = memory_bytes()
    assert 0 < free <= total
    told = Path("/proc/meminfo")
    assert not told.exists() or ["MemTotal:", str(total >> 10), "kB"] == told.read_text().splitlines()[0].split()


@pytest.mark.parametrize(
    ("used", "limit", "files", "none"),
    [
        ("memory.current", "memory.max", "inactive_file", "max"),
        ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes", "total_inactive_file", str(2**63 - 4096)),
    ],
    ids=["version 2", "version 1"],
)
def test_memory_is_what_the_machine_and_the_container_leave(tmp_path, monkeypatch, used, limit, files, none):
    group = tmp_path / "group"
    monkeypatch.setattr(processor, "memory_bytes", lambda: (16 << 20, 8000 << 10))
    assert free_memory(group) == 8000 << 10
    (group / used).parent.mkdir(parents=True)
    (group / used).write_text("5000000\n")
    (group / used).with_name("memory.stat").write_text(f"anon 1\n{files} 1000000\nactive_file 2\n")
    for text, free in ((none, 8000 << 10), ("6000000", 2_000_000), ("60000000000", 8000 << 10)):
        (group / limit).write_text(f"{text}\n")
        assert free_memory(group) == free
        assert total_memory(group) == min(16 << 20, int(text) if text != "max" else 16 << 20)


def test_without_a_place_to_keep_it_every_call_measures(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("LTX_CACHE", "")
    assert [speedups(), speedups()] == [ONE, TWO]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTX_CACHE", str(tmp_path / "file"))  # no folder can be made there
    assert speedups() == THREE


def test_the_measurement_is_of_the_precisions_that_the_processor_has():
    pytest.importorskip("openvino", reason="OpenVINO is not installed, as in the environment with .[cpu] alone")
    measurement = processor._measured()
    assert {"q8"} <= measurement.keys() <= {"q8", "bf16"}
    assert all(0.01 < speedup < 100 for speedup in measurement.values())


def test_products_of_8_bit_integers_are_exact_where_sums_have_32_bits():
    pytest.importorskip("openvino", reason="OpenVINO is not installed, as in the environment with .[cpu] alone")
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or not any(name in flags.read_text() for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        pytest.skip("this processor has no VNNI, and may add products in 16 bits - nothing can be tested here")
    assert not processor.saturates()
