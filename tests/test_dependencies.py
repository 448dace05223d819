"""Laws of what is installed: the locked and the oldest versions satisfy pyproject.toml, and nothing names an index."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML; development needs 3.11")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOBODY = ["audit: nobody answered: there is no network, or the package index has no such list"]
LOCKED, OLDEST = ROOT / "dependencies" / "locked.txt", ROOT / "dependencies" / "oldest.txt"
NOT_LOCKED = {"torch"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64"))
INSTALLED_EXTRAS = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


def environments(pythons=PYTHONS):
    for python in pythons:
        for system, machine in SYSTEMS:
            yield {
                "python_version": python,
                "python_full_version": f"{python}.9",
                "sys_platform": system,
                "platform_machine": machine,
                "platform_python_implementation": "CPython",
                "implementation_name": "cpython",
                "extra": "",
            }


def requirements_in(text):
    """Returns the requirements of a file for pip, with their checksums."""
    joined = re.sub(r"^#.*$", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split("--hash=") for line in joined.splitlines() if line.strip()]
    return [(Requirement(first.strip()), [one.strip() for one in sums]) for first, *sums in lines]


def counting(requirements, environment):
    return [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]


def stated(*, extras, groups=()):
    project = PROJECT["project"]
    lines = [*project["dependencies"]]
    lines += [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [
        Requirement(line)
        for line in (*lines, *(one for group in groups for one in PROJECT["dependency-groups"][group]))
    ]


def exact(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, requirement
    return Version(specifier.version)


def least(requirement):
    (floor,) = [one for one in requirement.specifier if one.operator in (">=", "==")]
    return Version(floor.version)


def test_the_lock_file_has_one_version_of_all_that_make_setup_installs_on_every_system():
    locked = [requirement for requirement, _ in requirements_in(LOCKED.read_text())]
    wanted = stated(extras=INSTALLED_EXTRAS, groups=("dev", "installing"))
    for environment in environments(PYTHONS[1:]):
        versions = {}
        for requirement in counting(locked, environment):
            name = canonicalize_name(requirement.name)
            assert name not in versions, (name, environment)
            versions[name] = exact(requirement)
        for need in counting(wanted, environment):
            name = canonicalize_name(need.name)
            assert name in NOT_LOCKED or need.specifier.contains(versions[name]), (need, environment)


def test_everything_that_is_locked_has_checksums_and_names_no_place():
    for requirement, sums in requirements_in(LOCKED.read_text()):
        assert requirement.url is None
        assert sums and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in sums), requirement
    assert not {canonicalize_name(one.name) for one, _ in requirements_in(LOCKED.read_text())} & NOT_LOCKED


def test_the_oldest_versions_are_those_that_pyproject_allows_where_they_have_wheels():
    oldest = [requirement for requirement, _ in requirements_in(OLDEST.read_text())]
    wanted = stated(extras=("cpu", "download"))
    wanted = [need for need in wanted if need.name != "huggingface-hub"]  # `make test-runtime` installs filelock alone
    for environment in environments():
        versions = {one.name: exact(one) for one in counting(oldest, environment)}
        needs = {need.name: need for need in counting(wanted, environment)}
        assert versions.keys() == needs.keys()
        for name, version in versions.items():
            floor = least(needs[name])
            assert version >= floor
            if environment["python_version"] in PYTHONS[:2]:
                assert version == floor, name


def test_the_least_python_is_one_thing_everywhere():
    least_python = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert PROJECT["tool"]["mypy"]["python_version"] == least_python == PYTHONS[0]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + least_python.replace(".", "")


def test_the_page_states_the_versions_of_pyproject():
    page = (ROOT / "docs" / "dependencies.md").read_text()
    on_page = {*map(Requirement, re.findall(r"`([a-z][\w-]*(?:\[[\w,-]+\])?[>=]=[\w.]+)`", page))}
    for need in stated(extras=PROJECT["project"]["optional-dependencies"], groups=("installing",)):
        need.marker = None
        assert need in on_page, need


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "dependencies" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(*entries):
    """Returns what pip-audit prints about packages: a name, and the ids of vulnerabilities or None."""
    return json.dumps(
        {
            "dependencies": [
                {"name": name, "skip_reason": "not found"}
                if ids is None
                else {"name": name, "version": "1.0", "vulns": [{"id": one, "fix_versions": []} for one in ids]}
                for name, ids in entries
            ]
        }
    )


@pytest.mark.parametrize(
    ("answer", "lines", "code"),
    [
        (printed(("fox", []), ("owl", [])), ["audit: 2 packages looked up, 0 with known vulnerabilities"], 0),
        (
            printed(("fox", ["CVE-1", "CVE-2"]), ("owl", None)),
            [
                "audit: fox 1.0 has CVE-1, CVE-2",
                "audit: 1 could not be looked up: owl",
                "audit: 1 packages looked up, 1 with known vulnerabilities",
            ],
            1,
        ),
        (printed(("fox", None)), NOBODY, 0),
        ("", NOBODY, 0),
    ],
    ids=["none", "known", "no list", "no network"],
)
def test_an_audit_that_nobody_answered_says_so_and_a_known_vulnerability_fails(audit, answer, lines, code):
    assert audit.report(LOCKED, lambda requirements: answer) == (lines, code)


def test_an_audit_whose_answer_fails_after_the_first_package_is_no_all_clear(audit):
    answers = iter([printed(("fox", [])), ""])
    assert audit.report(LOCKED, lambda requirements: next(answers)) == (NOBODY, 0)


def test_an_audit_asks_for_one_package_before_it_asks_for_all(audit):
    asked = []
    audit.report(LOCKED, lambda requirements: asked.append(requirements.read_text()) or printed(("fox", [])))
    first, everything = asked
    assert everything == LOCKED.read_text() and everything.startswith(first)
    ((requirement, sums),) = requirements_in(first)
    assert exact(requirement) and sums


def test_no_file_of_the_repository_names_an_index_to_install_from():
    names = re.compile(r"--(?:extra-)?index-url[ =]+\S*//|--find-links[ =]+\S*/|--trusted-host", re.IGNORECASE)
    for path in (ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / "dependencies").iterdir(), ROOT / ".ci" / "run"):
        if path.is_file():
            assert not names.search(path.read_text()), path
