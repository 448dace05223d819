"""Traces a network to an ONNX graph with fake weights, so that no parameter is ever allocated.

The graph's initializers are named by state dict keys and have no data, which `attach` adds. Only a few of the repeated
blocks are traced, and only in bf16: `repeat` adds the other blocks, `precision` converts to other precisions.
"""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import onnx_ir as ir
import torch
import torch.fx.experimental._config as tracing_config
from onnx_ir.passes import common as passes
from onnxscript import opset23
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, export

from ltx_export.graphs.repeat import repeat_blocks
from ltx_export.models.network import TRACED_BLOCKS, Network, build_empty
from ltx_runtime import __version__
from ltx_runtime.spec.components import Axis, Component, line_of

OPSET = 23
_PORT_DTYPES = {"float32": torch.float32, "int64": torch.int64}
# Sizes for tracing, all different so that no two axes are mistaken for one; only `timesteps` is tied to `tokens`.
_TRACED_SIZES = {"batch": 2, "tokens": 12, "timesteps": 12, "text_tokens": 7, "frames": 3, "rows": 4, "columns": 5}
_FOLD_LIMIT_BYTES = 1 << 20
_SCOPES = "pkg.torch.onnx.name_scopes"
_REWRITES = (rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.unsqueeze_unsqueeze_rule)
_CHATTY_LOGGERS = ("torch.onnx", "onnx_ir", "onnxscript")


def onnx_from_torch(network: Network) -> tuple[ir.Model, ir.Model]:
    """Traces a network to graphs that accept every size of their named axes.

    Returns:
        The graph of `traced_blocks` blocks and the graph of all blocks, both in bf16.
    """
    component = network.component(network.traced_blocks)
    traced = _trace(build_empty(lambda: network.make(network.traced_blocks), torch.bfloat16), component)
    whole = repeat_blocks(traced, network.path, network.blocks) if network.blocks > TRACED_BLOCKS else traced
    for model, blocks in ((traced, network.traced_blocks), (whole, network.blocks)):
        _name_axes(model, network.component(blocks))
    return traced, whole


def _trace(module: nn.Module, component: Component) -> ir.Model:
    with _quiet():
        with FakeTensorMode(allow_non_fake_inputs=True), _requested_view_sizes():
            _fake_parameters(module)
            inputs = tuple(torch.zeros(p.shape(_TRACED_SIZES), dtype=_PORT_DTYPES[p.dtype]) for p in component.inputs)
            program = export(module, inputs, dynamic_shapes=_dynamic_shapes(module, component), strict=False)
            _keep_operators(program)
            exported = torch.onnx.export(
                program,
                input_names=[port.name for port in component.inputs],
                output_names=[port.name for port in component.outputs],
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten.to.dtype: _cast},
                dynamo=True,
                verify=False,
                verbose=False,
                optimize=False,  # the optimizer would read the fake weights; `_simplify` does its work below
            )
        assert exported is not None
        model = exported.model
        parameters = {name for name, _ in module.named_parameters()}
        for name, value in model.graph.initializers.items():
            if name in parameters:
                value.const_value = None
        _simplify(model)  # outside fake mode, where copies of constants would be uninitialized memory
    _read_tokens_from_latents(model, component)
    _name_nodes(model)
    _strip_metadata(model)
    model.producer_name, model.producer_version = "ltx-engines", __version__
    model.graph.name = component.name
    return model


def _keep_operators(program: ExportedProgram) -> None:
    """Skips the exporter's decomposition, which would trace everything twice more, mostly in sympy.

    The exporter has a translation for every operator of ours except the cast; it refuses one without a translation by
    name. Decomposition would also rewrite operators that modify their input, so there must be none.

    Raises:
        ValueError: an operator modifies its input.
    """
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise ValueError(f"{node} modifies its input in place, which ONNX cannot express")
    program.run_decompositions = lambda *_: program


def _cast(x: Any, dtype: int) -> Any:
    return opset23.Cast(x, to=dtype)


def _simplify(model: ir.Model) -> None:
    """Folds constants, and removes or merges operators that only move data.

    It does not use onnxscript's whole optimizer, whose rules for zeros take 1e-8, the pixel norm's epsilon, for a zero
    and drop it.
    """
    passes.InlinePass()(model)
    fold_constants_ir(
        model, onnx_shape_inference=True, input_size_limit=_FOLD_LIMIT_BYTES, output_size_limit=_FOLD_LIMIT_BYTES
    )
    rewrite(model, _REWRITES)
    ir.passes.Sequential(
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def _fake_parameters(module: nn.Module) -> None:
    """Replaces meta parameters with fake ones on the CPU, where the constants are."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device="cpu")
                owner._parameters[name] = nn.Parameter(fake, requires_grad=False)


def _dynamic_shapes(module: nn.Module, component: Component) -> dict[str, object]:
    """Returns torch.export's dynamic shapes for every argument of forward, from the ports' named axes."""
    dims: dict[str, Dim] = {}

    def dim(axis: Axis) -> object:
        if isinstance(axis, int):
            return None
        line = line_of(axis)
        name = "tokens" if line.name == "timesteps" else line.name
        symbol = dims.setdefault(name, Dim(name, min=1))
        # An encoder divides its sizes, so torch.export must know what they are multiples of.
        scaled = symbol if line.factor == 1 else line.factor * symbol
        return scaled + line.offset if line.offset else scaled

    shapes = [{i: dim(a) for i, a in enumerate(p.axes) if isinstance(a, str)} for p in component.inputs]
    return inspect.signature(module.forward).bind(*shapes).arguments


def _read_tokens_from_latents(model: ir.Model, component: Component) -> None:
    """Reads the number of tokens from `latents` wherever the trace, in which both are equal, read that of timesteps."""
    values = dict(zip((port.name for port in component.inputs), model.graph.inputs, strict=True))
    for port in component.inputs:
        if "timesteps" in port.axes:
            for use in list(values[port.name].uses()):
                if use.node.op_type == "Shape":
                    assert use.node.attributes["end"].as_int() <= port.axes.index("timesteps") + 1
                    use.node.replace_input_with(use.idx, values["latents"])


def _name_nodes(model: ir.Model) -> None:
    """Prefixes each node's name with its module's path, so that profiles are readable and blocks can be told apart.

    A node without a module, made by a rewrite, gets the module of the node that produces its first input.
    """
    for i, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if scopes or producer is None:
            module = scopes[-2] if len(scopes) > 1 else ""
        else:
            module = (producer.name or "").partition("/")[0]
        node.name = f"{module or 'graph'}/{node.op_type}_{i}"


def _strip_metadata(model: ir.Model) -> None:
    """Removes the exporter's metadata, which contains paths of this machine and is larger than the graph."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _name_axes(model: ir.Model, component: Component) -> None:
    """Names the axes of every port, which also makes `timesteps` independent of `tokens`.

    Shapes of intermediate values are removed: they were traced with one timestep per token and would mislead a backend.
    """
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    for ports, values in ((component.inputs, model.graph.inputs), (component.outputs, model.graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.shape = ir.Shape(port.axes)


def _requested_view_sizes() -> AbstractContextManager[None]:
    """Returns a context in which a reshaped tensor has the requested sizes, not sizes derived from its earlier ones.

    Otherwise an encoder's sizes become quotients of quotients, and tracing takes three times as long.
    """
    return tracing_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch, onnx_ir and onnxscript log about their own internals and about weights without data."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
