"""The default folder of version folders: ./engines, else those installed with the program, else the user's own."""

import sys
from pathlib import Path

import platformdirs
import pytest

from ltx_runtime.files import cache_folder, data_folder, engines_folder
from ltx_runtime.folder.address import engines_option
from ltx_runtime.folder.finding import find_folder
from ltx_runtime.spec.versions import VERSIONS
from ltx_runtime.trust.made_here import is_made_here, record_made

DEMO = VERSIONS["demo"]
SMALL = ("a fox", "--height", "64", "--width", "96", "--num-frames", "9", "--seed", "3")


@pytest.fixture
def user(monkeypatch, tmp_path):
    """Returns the user's folder of engines, which does not exist yet; the working folder is empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name, appauthor: tmp_path / "data" / name)
    return tmp_path / "data" / "ltx-engines" / "engines"


def test_the_folder_is_the_given_one_or_that_of_the_project_or_that_of_the_user(user):
    assert engines_folder(None) == user
    assert engines_folder(Path("mine")) == Path("mine")
    Path("engines").mkdir()
    assert engines_folder(None) == Path("engines")
    assert engines_folder(Path("mine")) == Path("mine")


@pytest.mark.parametrize("answer", ["the tilde as it is", "an error"])
def test_a_user_without_a_home_has_the_working_folder_and_no_caches(user, monkeypatch, answer):
    """Depending on the release of platformdirs: nobody of this user's number is known, and HOME is not set."""

    def place(name, appauthor):
        if answer == "an error":
            raise RuntimeError("could not determine the home directory")
        return Path("~/.local/share") / name

    monkeypatch.delenv("LTX_CACHE", raising=False)
    for kind in ("user_data_path", "user_cache_path"):
        monkeypatch.setattr(platformdirs, kind, place)
    assert engines_folder(None) == Path("engines") and cache_folder() is None and data_folder("x") == Path("x")
    engine = user.parents[2] / "an.engine"
    engine.touch()
    assert not record_made(engine) and not is_made_here(engine)


def test_commands_name_the_folder_only_where_it_is_not_the_default(user):
    assert engines_option(user / "demo", "demo") == ""
    assert engines_option(Path("engines/demo"), "demo") == " --engines engines/demo"
    Path("engines").mkdir()
    assert engines_option(Path("engines/demo"), "demo") == ""
    assert engines_option(user / "demo", "demo") == f" --engines {user / 'demo'}"


def test_a_version_of_the_user_is_found_from_any_folder(user, engines, run, monkeypatch):
    user.parent.mkdir(parents=True)
    engines(DEMO).parent.rename(user)
    assert run(*SMALL, "--output", "clip.mp4")[0] == 0
    code, out, _ = run("--doctor")
    assert (code, f"folder: {user}," in out) == (0, True)


@pytest.mark.parametrize(("torch", "to_do"), [(object(), "run: ltx-export"), (None, "copy a version folder here")])
def test_where_there_is_none_both_places_are_named_with_what_can_be_done_here(user, run, monkeypatch, torch, to_do):
    monkeypatch.setattr("ltx_runtime.folder.commands.find_spec", lambda name: torch)
    code, _, err = run(*SMALL)
    assert code == 2
    assert f"neither ./engines nor {user} is a folder - {to_do}" in err
    code, out, _ = run("--doctor")
    assert (code, f"folder: {user} (does not exist yet), " in out) == (0, True)
    code, _, err = run("--doctor", "--engines", "no/such")
    assert (code, "no/such is not a folder" in err) == (2, True)


def test_the_folder_in_the_environment_comes_first(user, engines, run, monkeypatch, tmp_path):
    folder = engines(DEMO)
    monkeypatch.setenv("LTX_ENGINES", str(folder.parent))
    monkeypatch.chdir(tmp_path / "work")
    assert find_folder(folder.parent, None) == folder
    assert run(*SMALL, "--plan", "--engines", str(folder))[0] == 0


def test_versions_that_a_bundle_installed_come_after_those_of_the_project_and_before_those_of_the_user(
    user, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    user.mkdir(parents=True)
    installed = tmp_path / "environment" / "share" / "ltx-engines" / "engines"
    assert engines_folder(None) == user
    installed.mkdir(parents=True)
    assert engines_folder(None) == installed
    assert engines_folder(Path("mine")) == Path("mine")
    Path("engines").mkdir()
    assert engines_folder(None) == Path("engines")
