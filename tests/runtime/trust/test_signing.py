"""Laws of signatures: only this user's key makes them, and nothing else is taken for one."""

import stat
import sys
from pathlib import Path

import platformdirs
import pytest

from ltx_runtime.trust.signing import is_signed, signature_of


def test_a_text_is_signed_by_a_key_that_only_its_user_reads():
    signature = signature_of("fox \ud800")
    assert is_signed("fox \ud800", signature) and len(signature) == 64
    assert not is_signed("owl", signature)
    for other in ("", "0" * 64, signature[:-1], "é" * 64):
        assert not is_signed("fox \ud800", other)
    (key,) = Path(platformdirs.user_data_path(), "made-here").iterdir()
    assert sys.platform == "win32" or stat.S_IMODE(key.stat().st_mode) == 0o600


def test_another_key_makes_another_signature(tmp_path, monkeypatch):
    signature = signature_of("fox")
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: tmp_path)
    assert not is_signed("fox", signature)
    assert signature_of("fox") not in ("", signature)


@pytest.mark.parametrize("place", ["file", "relative", "damaged"])
def test_without_a_place_for_a_key_nothing_is_signed(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    data = {"file": tmp_path / "file", "relative": Path("data"), "damaged": tmp_path}[place]
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "made-here").mkdir()
    (tmp_path / "made-here" / "key").write_bytes(b"short")
    monkeypatch.setattr(platformdirs, "user_data_path", lambda *_, **__: data)
    assert signature_of("fox") == ""
    assert not is_signed("fox", "")
