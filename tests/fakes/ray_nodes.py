"""A Ray cluster on this machine: nodes are process trees of `ray start`, which can be killed like a machine.

A folder can be hidden from a node, or replaced, since a node may run in a mount namespace of its own.
"""

import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes
_START_S = 90.0


class Cluster:
    """A head node, which makes nothing, and further nodes by name."""

    def __init__(self) -> None:
        self._temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of sockets are limited in length
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._ray: Any = None
        try:
            self._start("head", 0, ["--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self._temporary}"])
            self.address = self._address()
            import ray

            self._ray = ray
            ray.init(self.address, log_to_driver=False, logging_level=logging.FATAL)
        except BaseException:
            self.close()
            raise

    def add(
        self,
        *names: str,
        cpus: int = 1,
        mounts: dict[Path, Path | str] | None = None,
        packages: Path = ROOT,
        temporary: Path = Path("/tmp"),
    ) -> None:
        """Starts nodes and waits until they have joined.

        Args:
            names: what they are called.
            cpus: CPU cores that each of them says it has.
            mounts: what the node has in place of a folder: another folder, or the options of an empty tmpfs.
            packages: the folder from which the node imports this project.
            temporary: its folder for temporary files.
        """
        for name in names:
            before = {node["NodeID"] for node in self._ray.nodes()}
            self._start(name, cpus, [f"--address={self.address}"], mounts, packages, temporary)
            until(lambda: any(node["NodeID"] not in before for node in self._ray.nodes()), f"{name} has not joined")  # noqa: B023

    def kill(self, name: str) -> None:
        """Kills every process of a node, as a power cut would; without the head node there is no cluster."""
        if name == "head" and self._ray is not None:
            self._ray.shutdown()
            self._ray = None
        started = self._nodes.pop(name)
        for process in _tree(started):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.wait()

    def makers(self) -> list[psutil.Process]:
        """Returns the processes of all makers of the cluster."""
        found = []
        for node in self._nodes.values():
            for process in _tree(node):
                with suppress(psutil.Error):
                    if process.cmdline()[0].startswith("ray::NodeMaker"):
                        found.append(process)
        return found

    def end_all_but_head(self) -> None:
        """Ends every node on which something can be made, and waits until the cluster knows."""
        for started in [started for name, started in self._nodes.items() if name != "head"]:
            for process in _tree(started):
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
        for name in [name for name in self._nodes if name != "head"]:
            with suppress(subprocess.TimeoutExpired):
                self._nodes[name].wait(5)
            self.kill(name)
        if self._ray is None:
            return
        until(lambda: [node["NodeName"] for node in self._ray.nodes() if node["Alive"]] == ["head"], "nodes still live")

    def close(self) -> None:
        """Ends all nodes."""
        for name in sorted(self._nodes, key="head".__ne__):
            self.kill(name)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(
        self,
        name: str,
        cpus: int,
        options: list[str],
        mounts: dict[Path, Path | str] | None = None,
        packages: Path = ROOT,
        temporary: Path = Path("/tmp"),
    ) -> None:
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block"),
            *(f"--node-name={name}", f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}", *options),
        ]
        if mounts:
            command = ["unshare", "--map-root-user", "--mount", "sh", "-c", _mounting(mounts, command)]
        self._nodes[name] = subprocess.Popen(
            command,
            env=_environment() | {"PYTHONPATH": str(packages), "TMPDIR": str(temporary)},
            cwd=self._temporary,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _address(self) -> str:
        file = Path(self._temporary) / "ray_current_cluster"
        until(lambda: file.exists() and file.read_text() != "", "the head node has not started")
        return file.read_text().strip()


def until(is_so: Callable[[], bool], otherwise: str) -> None:
    """Waits until something is so. Raises TimeoutError if it does not become so."""
    deadline = time.monotonic() + _START_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.1)


def _mounting(mounts: dict[Path, Path | str], command: list[str]) -> str:
    lines = [
        f"mount -t tmpfs -o {what} none {shlex.quote(str(place))}"
        if isinstance(what, str)
        else f"mount --bind {shlex.quote(str(what))} {shlex.quote(str(place))}"
        for place, what in mounts.items()
    ]
    return " && ".join([*lines, f"exec {shlex.join(command)}"])


def _environment() -> dict[str, str]:
    """Returns the environment of nodes: nothing of the user's clusters, and nothing told to anyone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "LTX_CACHE": ""}


def _tree(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(started.pid)
        return [process, *process.children(recursive=True)]
    return []
