"""Installs a bundle: python3 install.py [FOLDER]. Needs nothing but Python, and no network.

This file is copied into every bundle and run there by any Python, so it imports the standard library alone, and is read
by Python 3.6 and later, in order to say which version is needed.
"""

import argparse
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path, PurePosixPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BUNDLE = Path(__file__).resolve().parent
FACTS, SUMS, LOCK = "bundle.json", "SHA256SUMS", "requirements.txt"
FORMAT = 1
KEYS = {"format", "version", "extras", "python", "system", "machine", "least", "installed_bytes", "files", "trial"}
SHARE = Path("share") / "ltx-engines"
STATE = SHARE / "installed.json"
PROMPT = "A red fox runs through deep snow"
PROGRAMS = "Scripts" if os.name == "nt" else "bin"
# What a virtual environment consists of, on all systems; everything else in the folder is left alone.
ENVIRONMENT = ("bin", "Scripts", "lib", "Lib", "lib64", "include", "Include", "pyvenv.cfg")
SYSTEMS = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}
EXTRACT = "get the bundle again, compare its SHA-256, and extract it with: tar -xf"
USER_ERROR, INTERRUPTED = 2, 130


class RefusedError(Exception):
    """A problem in one sentence, with what to do about it."""


def main() -> int:
    """Installs the bundle that this file lies in, and returns an exit code."""
    parser = argparse.ArgumentParser(prog="install.py", description="Installs this bundle without a network.")
    parser.add_argument("folder", nargs="?", default="ltx-engines", help="where to install (default: ./ltx-engines)")
    parser.add_argument("--no-trial", action="store_true", help="make no video at the end, to see that it works")
    arguments = parser.parse_args()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        install(Path(os.path.abspath(arguments.folder)), not arguments.no_trial)
    except RefusedError as refused:
        return ended(f"error: {refused}", USER_ERROR)
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        to_do = "free some space" if full else "check its permissions"
        problem = f"cannot use{place}: {(error.strerror or str(error)).lower()}"
        return ended(f"error: {problem} - {to_do} or choose another folder: install.py FOLDER", USER_ERROR)
    except KeyboardInterrupt:
        return ended("error: interrupted; run the same command again", INTERRUPTED)
    return 0


def ended(line: str, code: int) -> int:
    """Prints the last line, and returns the exit code."""
    sys.stderr.write(line + "\n")
    return code


def say(line: str) -> None:
    """Prints a line of progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def install(folder: Path, trial: bool) -> None:
    """Checks everything, then installs; a new folder is removed if that fails."""
    facts = read_facts()
    check_python(facts)
    check_machine(facts)
    state = read_state(folder)
    sums = read_sums(facts)
    version = facts["version"]
    check_space(folder, facts, sums, state)
    check_files(sums)
    fresh = state is None
    try:
        (folder / SHARE).mkdir(parents=True, exist_ok=True)
        lock = sums[LOCK]
        if state != {"requirements": lock, "complete": True}:
            write_state(folder, lock, False)
            make_environment(folder, sums)
        place_engines(folder, version, sums)
        write_state(folder, lock, True)
    except BaseException:
        if fresh:
            shutil.rmtree(str(folder), ignore_errors=True)
        raise
    say(f"{version} is installed in {folder}")
    if trial and facts["trial"] is not None:
        make_trial(folder, version, facts["trial"])
    tell_next(folder, version, facts)


def read_facts() -> "dict":
    """Returns what the bundle says about itself."""
    try:
        facts = json.loads((BUNDLE / FACTS).read_text("utf-8"))
        if KEYS - set(facts):
            raise ValueError(FACTS)
    except (OSError, ValueError, TypeError):
        raise RefusedError(f"{BUNDLE / FACTS} is missing or damaged - {EXTRACT}") from None
    if facts["format"] != FORMAT:
        raise RefusedError(f"{BUNDLE / FACTS} has another format than {FORMAT} - use its own install.py")
    return facts


def check_python(facts: "dict") -> None:
    """Refuses another version or kind of Python than that of the wheels."""
    wanted, own = "{}.{}".format(*facts["python"]), "{}.{}".format(*sys.version_info[:2])
    if wanted != own:
        program = f"py -{wanted}" if os.name == "nt" else f"python{wanted}"
        found = shutil.which(program.split()[0])
        to_do = f"run: {program} {Path(__file__).name}" if found else f"install Python {wanted}"
        raise RefusedError(f"this bundle is for Python {wanted}, and this is {own} - {to_do}")
    if platform.python_implementation() != "CPython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise RefusedError(f"this bundle is for the usual CPython {wanted} - install that")
    try:
        import venv  # noqa: F401, PLC0415
    except ImportError:
        raise RefusedError("this Python has no module venv - install the package python3-venv of your system") from None


def check_machine(facts: "dict") -> None:
    """Refuses another system or processor than that of the wheels, and too old a system."""
    wanted = "{} on {}".format(SYSTEMS.get(facts["system"], facts["system"]), facts["machine"])
    own = f"{SYSTEMS.get(sys.platform, sys.platform)} on {platform.machine()}"
    narrow = sys.maxsize < 2**32 and "64" in facts["machine"]
    if (facts["system"], facts["machine"]) != (sys.platform, platform.machine()) or narrow:
        own += " with a Python of 32 bits" if narrow else ""
        raise RefusedError(f"this bundle is for {wanted}, and this is {own} - make one with --platform")
    for name, least in facts["least"].items():
        version = system_version(name)
        if version is None or version < least:
            text = "none" if version is None else ".".join(map(str, version))
            needed = ".".join(map(str, least))
            raise RefusedError(f"this bundle needs {name} {needed}, and here is {text} - make one with --platform")


def system_version(name: str) -> "list | None":
    """Returns the version of glibc or macOS; for musl, which does not tell it, a late one where there is no glibc."""
    if name == "macos":
        return [int(number) for number in platform.mac_ver()[0].split(".")[:2]] or None
    try:
        glibc = [int(number) for number in str(os.confstr("CS_GNU_LIBC_VERSION")).split()[1].split(".")[:2]]
    except (AttributeError, ValueError, OSError, IndexError):
        glibc = None
    return ([1, 99] if glibc is None else None) if name == "musl" else glibc


def read_state(folder: Path) -> "dict | None":
    """Returns what an installer has noted in a folder; None if the folder is new or empty.

    Refuses a folder with other things in it.
    """
    if os.path.lexists(str(folder)) and not folder.is_dir():
        raise RefusedError(f"{folder} is no folder - choose another one: install.py FOLDER")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
    except (OSError, ValueError):
        raise RefusedError(f"{folder} holds other things - choose a new folder: install.py FOLDER") from None
    return state


def write_state(folder: Path, lock: str, complete: bool) -> None:
    """Notes which wheels are installed in a folder, and whether all of them are."""
    temporary = folder / (str(STATE) + ".new")
    temporary.write_text(json.dumps({"requirements": lock, "complete": complete}), "utf-8")
    temporary.replace(folder / STATE)


def read_sums(facts: "dict") -> "dict":
    """Returns the checksum of every file of the bundle by its name."""
    try:
        lines = (BUNDLE / SUMS).read_text("utf-8").splitlines()
    except (OSError, ValueError):
        raise RefusedError(f"{BUNDLE / SUMS} is missing: the bundle was cut short - {EXTRACT}") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if len(sums) != facts["files"]:
        raise RefusedError("{} lists {} of {} files - {}".format(BUNDLE / SUMS, len(sums), facts["files"], EXTRACT))
    for name in sums:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
            raise RefusedError(f"{BUNDLE / SUMS} names {name!r}, which is outside the bundle - do not use it")
    return sums


def check_space(folder: Path, facts: "dict", sums: "dict", state: "dict | None") -> None:
    """Refuses a disk with too little space for the programs and, on another disk than the bundle's, for the weights."""
    place = folder
    while not place.exists():
        place = place.parent
    needed = 0 if state == {"requirements": sums.get(LOCK), "complete": True} else facts["installed_bytes"]
    if place.stat().st_dev != BUNDLE.stat().st_dev and not (folder / SHARE / "engines" / facts["version"]).exists():
        engines = (BUNDLE / name for name in sums if name.startswith("engines/"))
        needed += sum(path.stat().st_size for path in engines if path.exists())
    free = shutil.disk_usage(str(place)).free
    if needed > free:
        amounts = f"{needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free"
        raise RefusedError(f"{folder} needs {amounts} - free some space or choose another disk: install.py FOLDER")


def check_files(sums: "dict") -> None:
    """Refuses a bundle of which a file is missing or has changed."""
    size = sum((BUNDLE / name).stat().st_size for name in sums if (BUNDLE / name).is_file())
    say(f"checking {len(sums)} files, {size / 1e9:.2f} GB")
    for name, expected in sorted(sums.items()):
        if not (BUNDLE / name).is_file():
            raise RefusedError(f"{BUNDLE / name} is missing - {EXTRACT}")
        if digest_of(BUNDLE / name) != expected:
            raise RefusedError(f"{BUNDLE / name} has changed since the bundle was made - {EXTRACT}")


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def make_environment(folder: Path, sums: "dict") -> None:
    """Makes a virtual environment, and installs all wheels with the bundle's own pip."""
    import venv  # noqa: PLC0415  (the check above says what to do where it is missing)

    say(f"installing into {folder}")
    for name in ENVIRONMENT:
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(str(place))
        elif os.path.lexists(str(place)):
            place.unlink()
    venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(str(folder))
    (pip,) = [BUNDLE / name for name in sums if name.startswith("wheels/pip-")]
    options = ["--no-index", "--find-links", str(BUNDLE / "wheels"), "--only-binary", ":all:", "--no-cache-dir"]
    options += ["--require-hashes", "--quiet", "--disable-pip-version-check", "--no-warn-script-location", "--no-input"]
    python = str(folder / PROGRAMS / "python")
    command = [python, str(pip / "pip"), "install", *options, "--requirement", str(BUNDLE / LOCK)]
    ran = run(command, PIP_CONFIG_FILE=os.devnull)
    if ran.returncode != 0:
        raise RefusedError("pip cannot install the wheels: {} - {}".format(last_line(ran.stderr, "ERROR: "), EXTRACT))


def run(command: "list", **environment: str) -> "subprocess.CompletedProcess":
    """Runs a program without what the user's environment says to Python, to pip and to this project's programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "LTX_"))}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**kept, **environment},
    )


def last_line(text: str, start: str) -> str:
    """Returns the last line with this start, without it, or else the last line."""
    lines = text.strip().splitlines() or ["no message"]
    wanted = [line[len(start) :] for line in lines if line.startswith(start)]
    return (wanted or lines)[-1]


def place_engines(folder: Path, version: str, sums: "dict") -> None:
    """Puts the version folder into the environment: as hard links, or as copies on another disk."""
    start = f"engines/{version}/"
    names = [name[len(start) :] for name in sums if name.startswith(start)]
    target = folder / SHARE / "engines" / version
    source = BUNDLE / "engines" / version
    if all(same_file(source / name, target / name, sums[start + name]) for name in names):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = target.parent / f".{version}.partial", target.parent / f".{version}.old"
    whole = target.parent / f".ltx-{version}.new"  # where ltx-run finds a whole folder that is to replace another one
    if whole.exists() and not target.exists():
        whole.replace(target)
    for left in (temporary, old, whole):
        shutil.rmtree(str(left), ignore_errors=True)
    held = None
    try:
        for name in names:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source / name, temporary / name)
        held = lock_on(temporary)
        replace_folder(temporary, whole, target, old)
    finally:
        if held is not None:
            os.close(held)
        for left in (temporary, old):
            shutil.rmtree(str(left), ignore_errors=True)


def lock_on(folder: Path) -> "int | None":
    """Locks a folder, so that ltx-run does not take it for what a killed installer has left; None where none can be."""
    if fcntl is None:
        return None
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks, where ltx-run leaves alone what is new
        os.close(descriptor)
        return None
    return descriptor


def replace_folder(temporary: Path, whole: Path, target: Path, old: Path) -> None:
    """Gives a whole folder the name of an old one, which gets another name; if that fails, the old one has its own."""
    temporary.replace(whole)
    if target.exists():
        target.replace(old)
    try:
        whole.replace(target)
    except OSError:
        if target.exists():  # an ltx-run that was started meanwhile has given it its name
            return
        if old.exists():
            old.replace(target)
        raise


def same_file(source: Path, target: Path, digest: str) -> bool:
    """Returns whether a file is in its place already, with the bytes of the bundle's."""
    return target.is_file() and (os.path.samefile(str(source), str(target)) or digest_of(target) == digest)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy where there can be none."""
    try:
        os.link(str(source), str(target))
    except OSError:
        shutil.copyfile(str(source), str(target))


def make_trial(folder: Path, version: str, options: "list") -> None:
    """Makes a small video, which shows that the installation works on this machine."""
    started = time.time()
    with tempfile.TemporaryDirectory(dir=str(folder)) as place:
        output = Path(place) / "trial.mp4"
        command = [str(folder / PROGRAMS / "ltx-run"), PROMPT, "--version", version, *options, "--output", str(output)]
        engines = str(folder / SHARE / "engines")
        ran = run(command, LTX_ENGINES=engines, LTX_CACHE="")
        if ran.returncode != 0 or not output.is_file():
            raise RefusedError("it is installed, but a first video fails: {}".format(last_line(ran.stderr, "error: ")))
    say(f"a first small video was made in {time.time() - started:.1f} s")


def tell_next(folder: Path, version: str, facts: "dict") -> None:
    """Prints what to type next."""
    several = len([place for place in (folder / SHARE / "engines").iterdir() if place.is_dir()]) > 1
    selected = f" --version {version}" if several else ""
    say('next: {}{} "{}"'.format(quoted(folder / PROGRAMS / "ltx-run"), selected, PROMPT))
    if "serve" in facts["extras"]:
        say("or:   {}".format(quoted(folder / PROGRAMS / "ltx-serve")))
    say(f"{BUNDLE} is not needed any more")


def quoted(path: Path) -> str:
    """Returns a path as a shell takes it."""
    return f'"{path}"' if " " in str(path) else str(path)


if __name__ == "__main__":
    sys.exit(main())
