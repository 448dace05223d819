"""ltx-run on the fake stages in a process of its own, which can be killed at any of its dealings with files.

Usage: python program.py MOMENT ARGUMENTS. The process kills itself at file event number MOMENT; 0 lets it end. The last
line of standard error is the number of events.
"""

import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import platformdirs

EVENTS = ("open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove")
ROOT = Path(__file__).parents[2]
DATA = "USER_DATA"  # variable that names the folder of what the user keeps


def environment() -> dict[str, str]:
    """Returns the variables of such a process: nothing is the user's own, and the test's key signs what it leaves."""
    from ltx_runtime.trust.signing import signature_of

    signature_of("")  # makes the key, so that the first process has no more events than the others
    kept = {DATA: str(platformdirs.user_data_path()), "LTX_CACHE": "", "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    return kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def watch(moment: int) -> list[str]:
    """Lists events from now on, and kills the process at the one with this number."""
    events: list[str] = []

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS and not (event == "open" and str(arguments[0]).endswith((".py", ".pyc", ".so"))):
            events.append(event)
            if len(events) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
    return events


def install_fake_stages() -> None:
    """Makes the fake stages the only backend of this process."""
    from fakes.stages import Diary, Stage

    from ltx_runtime.sessions import BACKENDS, Backend, graph_found

    module, notes = ModuleType("fake_stages"), Diary()
    module.find = lambda engines, name, backend: graph_found(engines, name, backend, ["fp32"])  # type: ignore[attr-defined]
    module.load = lambda found: Stage(found.component.name, notes)  # type: ignore[attr-defined]
    sys.modules["fake_stages"] = module
    BACKENDS.clear()
    BACKENDS["cpu"] = Backend("fake_stages", "fake")


def main() -> None:
    """Installs the fake stages, and runs the program."""
    from ltx_runtime.cli import main as cli

    data = Path(os.environ[DATA])
    platformdirs.user_data_path = lambda *_, **__: data  # type: ignore[assignment]
    install_fake_stages()
    moment = int(sys.argv.pop(1))
    sys.argv[0] = "ltx-run"
    events = watch(moment)
    try:
        cli.main()
    finally:
        sys.stderr.write(f"{len(events)} events\n")


if __name__ == "__main__":
    main()
