"""Makes the tasks of a batch on a cluster of Ray: on every node, one maker for each GPU or share of the CPU.

The makers are actors, which this file hands one task at a time, rather than operators of Ray Data: those end the whole
run when one node has no engines, and may try a task again where it failed. A task whose maker or node is lost goes to
another one. Videos come back as bytes and only this process stores them, so each is there once, however often it was
begun.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ltx_runtime.batch.tasks import Outcome, Task
from ltx_runtime.cluster.joining import Node, nodes, still_joined
from ltx_runtime.cluster.node import Introduction, Made, NodeMaker, Share, introduction_of, with_inputs
from ltx_runtime.errors import LtxError

_TICK_S = 2.0  # how soon new nodes are noticed
_WAITED_S = 15.0  # until it is told that no maker is ready
_KEPT_INPUTS = 32  # files of tasks that stay in Ray's object store for the next task
_MOST_LOSSES = 3  # makers that one task may lose
_MOST_FAULTS = 3  # tasks in a row that a node may fail at although another node makes them, and makers it may lose


@dataclass
class _Maker:
    """An actor on a node.

    Attributes:
        node: the node.
        actor: Ray's handle of it.
        answer: Ray's reference to what it is to answer: to a task, or without one its introduction. None if it is idle.
        task: the task that it makes.
        is_ready: whether it has introduced itself.
    """

    node: Node
    actor: Any
    answer: Any
    task: Task | None = None
    is_ready: bool = False


class Team:
    """All makers of the cluster that this process has joined. Nodes that join later are used too.

    Args:
        share: what every maker is told.
        cpus: CPU cores of each maker on nodes without a GPU; None for all that the node has.
        note: is called with what the user should know.
    """

    def __init__(self, share: Share, cpus: int | None, note: Callable[[str], None]) -> None:
        import ray  # noqa: PLC0415

        self._share, self._cpus, self._note = share, cpus, note
        self._ours = introduction_of(share.engines)
        self._actor = ray.remote(max_restarts=0)(NodeMaker)
        self._put = lru_cache(_KEPT_INPUTS)(lambda path, modified_ns: ray.put(path.read_bytes()))
        self._makers: list[_Maker] = []
        self._left_out: dict[str, str] = {}  # nodes that are not used, as a sentence, by id
        self._again: deque[Task] = deque()
        self._failed_on: dict[int, str] = {}  # id of the node where a task failed first, by its number
        self._losses: Counter[int] = Counter()  # makers lost with a task, by its number
        self._faults: Counter[str] = Counter()  # what a node alone failed at since its last video, by its id
        self._noted: set[str] = set()
        self._hired_at, self._idle_since = float("-inf"), time.monotonic()

    def made(self, tasks: Iterable[Task]) -> Iterator[Made]:
        """Makes tasks and yields them as they are done, in any order; a task is taken when a maker is free for it.

        Raises:
            LtxError: no node can make videos, or the cluster is gone.
        """
        import ray  # noqa: PLC0415

        upcoming = iter(tasks)
        ahead = next(upcoming, None)
        while ahead is not None or self._again or any(maker.task for maker in self._makers):
            self._hire()
            for maker in self._makers:
                while maker.answer is None and (again := self._again_for(maker)) is not None:
                    yield from self._begin(maker, again)
                while maker.answer is None and ahead is not None:
                    yield from self._begin(maker, ahead)
                    ahead = next(upcoming, None)
            busy = {maker.answer: maker for maker in self._makers if maker.answer is not None}
            with still_joined():
                ready, _ = ray.wait([*busy], num_returns=1, timeout=_TICK_S) if busy else ([], [])
            for answer in ready:
                yield from self._heard(busy[answer])
            self._tell_waiting()

    def _hire(self) -> None:
        """Starts the makers that the nodes have room for and do not have yet.

        Raises:
            LtxError: no node is left that can make videos.
        """
        if time.monotonic() - self._hired_at < _TICK_S and self._makers:
            return
        self._hired_at = time.monotonic()
        for node in nodes():
            if node.id in self._left_out:
                continue
            count, resources = self._room_of(node)
            if not count and node.cpus:
                few = f"it has {node.cpus} CPU cores, and each video is to have {self._cpus}"
                self._left_out[node.id] = f"{node.name}: {few}"
            have = sum(maker.node.id == node.id for maker in self._makers)
            for _ in range(count - have):
                self._makers.append(self._started(node, resources))
        if not self._makers:
            reasons = "; ".join(self._left_out.values()) or "none is alive that has a GPU or CPU cores"
            raise LtxError(f"no node of the Ray cluster can make videos: {reasons}")

    def _room_of(self, node: Node) -> tuple[int, dict[str, int]]:
        """Returns how many makers a node has room for, and what each of them takes."""
        if node.gpus:
            return node.gpus, {"num_gpus": 1, "num_cpus": 0}
        cpus = self._cpus or node.cpus
        return node.cpus // cpus if cpus else 0, {"num_cpus": cpus}

    def _started(self, node: Node, resources: dict[str, int]) -> _Maker:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        actor = self._actor.options(scheduling_strategy=place, **resources).remote(self._share)
        return _Maker(node, actor, actor.introduce.remote())

    def _again_for(self, maker: _Maker) -> Task | None:
        """Returns a task to make once more, that did not fail on the maker's node if there are other nodes."""
        for task in self._again:
            if self._failed_on.get(task.number) != maker.node.id or not self._has_others(maker.node):
                self._again.remove(task)
                return task
        return None

    def _has_others(self, node: Node) -> bool:
        return any(maker.is_ready and maker.node.id != node.id for maker in self._makers)

    def _begin(self, maker: _Maker, task: Task) -> Iterator[Made]:
        """Hands a task to a maker; yields it if its files cannot be read."""
        try:
            task, files = with_inputs(task, self._share.folder)
            inputs = {path: self._put(path, path.stat().st_mtime_ns) for path in files}
        except (LtxError, OSError) as error:
            yield Made(Outcome(task, problem=str(error)))
            return
        maker.task = task
        maker.answer = maker.actor.make.remote(task, inputs)

    def _heard(self, maker: _Maker) -> Iterator[Made]:
        """Takes the answer of a maker; yields a task that it is done with."""
        import ray  # noqa: PLC0415
        from ray.exceptions import RayError, RayTaskError  # noqa: PLC0415

        answer, task = maker.answer, maker.task
        maker.answer = maker.task = None
        try:
            heard = ray.get(answer)
        except RayTaskError as error:
            cause = error.cause
            problem = (
                str(cause) if isinstance(cause, LtxError) else f"a bug of this program, please report it: {cause!r}"
            )
            if task is None:
                self._leave_out(maker.node, problem)
            else:
                yield from self._done(maker, Made(Outcome(task, problem=problem)))
        except RayError as error:
            yield from self._lost(maker, task, error)
        else:
            if isinstance(heard, Introduction):
                maker.is_ready = True
                self._check(maker.node, heard)
            else:
                yield from self._done(maker, heard)

    def _check(self, node: Node, theirs: Introduction) -> None:
        """Leaves a node out whose videos could differ from those of the others."""
        if theirs.release != self._ours.release:
            self._leave_out(
                node, f"it has release {theirs.release} of ltx-engines, and this machine {self._ours.release}"
            )
        elif theirs.engines != self._ours.engines:
            self._leave_out(node, f"its version folder is another one than {self._share.engines} here")

    def _done(self, maker: _Maker, made: Made) -> Iterator[Made]:
        """Yields a task that is done; one that failed is first tried on another node, if there is one."""
        outcome, node = made.outcome, maker.node
        for line in made.notes:
            self._note_once(line)
        earlier = self._failed_on.get(outcome.task.number)
        if outcome.result is not None:
            self._faults[node.id] = 0
            if earlier is not None and earlier != node.id:
                self._count_fault(earlier, outcome.task)
            yield replace(made, outcome=replace(outcome, result=outcome.result | {"node": node.name}))
        elif earlier is None and self._has_others(node):
            self._failed_on[outcome.task.number] = node.id
            self._again.append(outcome.task)
        else:
            yield made

    def _count_fault(self, node_id: str, task: Task) -> None:
        """Counts a task that failed on a node and was made on another; too many in a row, and the node is left out."""
        self._faults[node_id] += 1
        node = next((maker.node for maker in self._makers if maker.node.id == node_id), None)
        if node is not None and self._faults[node_id] >= _MOST_FAULTS:
            self._leave_out(node, f"it failed at {_MOST_FAULTS} videos that other nodes could make")

    def _lost(self, maker: _Maker, task: Task | None, error: Exception) -> Iterator[Made]:
        """Gives up a maker that is gone or cannot be reached, and takes back its task; another maker follows it."""
        import ray  # noqa: PLC0415

        ray.kill(maker.actor)
        self._makers.remove(maker)
        self._hired_at = float("-inf")
        self._faults[maker.node.id] += 1
        self._note_once(f"{maker.node.name}: a maker was lost")
        if self._faults[maker.node.id] >= _MOST_FAULTS:
            self._leave_out(maker.node, f"{_MOST_FAULTS} makers in a row were lost there: {_reason(error)}")
        if task is None:
            return
        self._losses[task.number] += 1
        if self._losses[task.number] < _MOST_LOSSES:
            self._again.appendleft(task)
        else:
            problem = f"{_MOST_LOSSES} makers were lost with it, the last on {maker.node.name}: {_reason(error)}"
            yield Made(Outcome(task, problem=problem))

    def _leave_out(self, node: Node, reason: str) -> None:
        """Uses a node no more; the tasks that its makers are making go to others."""
        import ray  # noqa: PLC0415

        self._left_out[node.id] = f"{node.name}: {reason}"
        self._note_once(f"{node.name} is left out: {reason}")
        for maker in [one for one in self._makers if one.node.id == node.id]:
            ray.kill(maker.actor)
            self._makers.remove(maker)
            if maker.task is not None:
                self._again.appendleft(maker.task)

    def _tell_waiting(self) -> None:
        if any(maker.task for maker in self._makers):
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > _WAITED_S:
            self._note_once("waiting for a node: all are busy, or still verify their version folders")

    def _note_once(self, line: str) -> None:
        if line not in self._noted:
            self._noted.add(line)
            self._note(line)


def _reason(error: Exception) -> str:
    """Returns the end of what Ray says of a lost maker: a missing module, or why the process or its node is gone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = [line for line in lines if "ModuleNotFoundError" in line]
    return (missing or lines or [type(error).__name__])[-1]
