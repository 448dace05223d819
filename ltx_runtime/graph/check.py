"""Checks a graph before a library sees it: what it computes with, what it reads, and what it takes and gives.

A version folder is data that may come from a stranger, and a library that loads a graph trusts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ltx_runtime.errors import LtxError, explaining, shown
from ltx_runtime.graph.operators import BITS, DOMAINS, IR_VERSIONS, OPERATORS, OPSETS, PORTS
from ltx_runtime.graph.reading import EXPORT_AGAIN, Graph, Initializer, Node, Value, read_graph
from ltx_runtime.spec.components import Component, Port

# How much of its files a graph may read in all: scales of some block formats have a second name.
_MOST_READ = 2


def check_graph(path: Path, component: Component, files: Mapping[str, int]) -> None:
    """Checks that a graph is one that a library may load as a component.

    It has operators of a list and nothing else that computes; its constants have the sizes that their shapes ask for,
    and lie in the graph or inside one of the component's files; its ports are those of the component; and each of its
    values has a name of its own and is made before it is used.

    Args:
        path: path of the graph.
        component: ports that the graph must have.
        files: sizes in bytes of the weight files that the graph may read, by the names that it has for them.

    Raises:
        LtxError: the graph cannot be read, or is not such a graph.
    """
    with explaining(f"read {path}"):
        now = path.stat()
    _check(path, (now.st_ino, now.st_size, now.st_mtime_ns), component, tuple(sorted(files.items())))


@lru_cache(maxsize=64)
def _check(path: Path, _: tuple[int, ...], component: Component, sizes: tuple[tuple[str, int], ...]) -> None:
    """Checks a graph once as long as its file stays the same."""
    graph, files = read_graph(path), dict(sizes)
    try:
        _check_versions(graph)
        _check_operators(graph.nodes)
        _check_constants(graph.initializers, component, files)
        _check_ports("input", graph.inputs, component.inputs)
        _check_ports("output", graph.outputs, component.outputs)
        _check_names(graph)
    except ValueError as error:
        raise LtxError(f"{path} cannot be used as a graph of {component.name}: {error}", EXPORT_AGAIN) from None


def _check_versions(graph: Graph) -> None:
    if graph.ir_version not in IR_VERSIONS:
        raise ValueError(f"it is written in version {graph.ir_version} of the format, which no export writes")
    for domain, version in graph.opsets.items():
        if domain not in DOMAINS or version not in OPSETS:
            raise ValueError(f"it uses version {version} of the operators {shown(domain)}, which no export uses")
    if not graph.opsets:
        raise ValueError("it does not say which version of the operators it uses")


def _check_operators(nodes: Iterable[Node]) -> None:
    for node in nodes:
        if node.op_type not in OPERATORS or node.domain not in DOMAINS:
            named = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ValueError(f"it has the operator {shown(named)}, which no export uses")


def _check_constants(initializers: Iterable[Initializer], component: Component, files: Mapping[str, int]) -> None:
    read = 0
    for constant in initializers:
        bits = BITS.get(constant.data_type)
        if bits is None:
            raise ValueError(f"{shown(constant.name)} has the data type {constant.data_type}, which no export writes")
        expected = (math.prod(constant.dims) * bits + 7) // 8
        if constant.length != expected:
            raise ValueError(f"{_described(constant)} has {constant.length} bytes instead of {expected}")
        if constant.place is None:
            continue
        location, offset, length = constant.place
        if location not in files:
            raise ValueError(f"it reads {shown(location)}, which is no weight file of {component.name}")
        if offset + length > files[location]:
            raise ValueError(f"{_described(constant)} ends behind the end of {location}")
        read += length
    if read > _MOST_READ * sum(files.values()):
        raise ValueError(f"it reads {read} bytes of weights from files of {sum(files.values())}")


def _described(constant: Initializer) -> str:
    return f"{shown(constant.name)} of shape {shown([*constant.dims])}"


def _check_ports(kind: str, values: Sequence[Value], ports: Sequence[Port]) -> None:
    if [value.name for value in values] != [port.name for port in ports]:
        listed = shown([value.name for value in values])
        raise ValueError(f"it has the {kind}s {listed} instead of {', '.join(port.name for port in ports)}")
    for value, port in zip(values, ports, strict=True):
        if value.data_type != PORTS[port.dtype]:
            raise ValueError(f"its {kind} {port.name} has the data type {value.data_type} instead of {port.dtype}")
        if value.axes != port.axes:
            raise ValueError(
                f"its {kind} {port.name} has the axes {shown([*value.axes])} instead of {shown([*port.axes])}"
            )


def _check_names(graph: Graph) -> None:
    """Raises ValueError unless each value has one name and one source, which comes before every use."""
    known: set[str] = {""}  # of an input that a node leaves out

    def add(name: str) -> None:
        if name in known:
            raise ValueError(f"two of its values are called {shown(name)}")
        known.add(name)

    for name in (*(value.name for value in graph.inputs), *(constant.name for constant in graph.initializers)):
        add(name)
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                raise ValueError(f"a node takes {shown(name)}, which nothing before it makes")
        for name in filter(None, node.outputs):
            add(name)
    for value in graph.outputs:
        if value.name not in known:
            raise ValueError(f"nothing makes its output {value.name}")
