"""Network + ports -> ONNX graph, traced with fake weights: no parameter is ever allocated.

The graph's initializers keep their state-dict names and have no data; `weights` gives it to them. Repeated blocks
are traced a few times only, and in bf16 only: `repeat` and `precision` make the whole graph of it.
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
# Traced sizes, all different so that no two axes are taken for one. `timesteps` is tied to `tokens`.
_TRACED = {"batch": 2, "tokens": 12, "timesteps": 12, "text_tokens": 7, "frames": 3, "rows": 4, "columns": 5}
_FOLD_LIMIT_BYTES = 1 << 20
_SCOPES = "pkg.torch.onnx.name_scopes"
_REWRITES = (rules.collapse_slice_rule, rules.collapse_slice2_rule, rules.unsqueeze_unsqueeze_rule)
_CHATTY_LOGGERS = ("torch.onnx", "onnx_ir", "onnxscript")


def onnx_from_torch(network: Network) -> tuple[ir.Model, ir.Model]:
    """Traces a network into graphs that serve every size of their named axes.

    Returns:
        The graph of `traced_blocks` blocks and that of all of them, both in bf16.
    """
    component = network.component(network.traced_blocks)
    traced = _trace(build_empty(lambda: network.make(network.traced_blocks), torch.bfloat16), component)
    whole = repeat_blocks(traced, network.path, network.blocks) if network.blocks > TRACED_BLOCKS else traced
    for model, blocks in ((traced, network.traced_blocks), (whole, network.blocks)):
        _name_axes(model, network.component(blocks))
    return traced, whole


def _trace(module: nn.Module, component: Component) -> ir.Model:
    with _quiet():
        with FakeTensorMode(allow_non_fake_inputs=True), _views_as_asked():
            _fake_parameters(module)
            inputs = tuple(torch.zeros(p.shape(_TRACED), dtype=_PORT_DTYPES[p.dtype]) for p in component.inputs)
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
                optimize=False,  # would read the fake weights; done below
            )
        assert exported is not None
        model = exported.model
        parameters = {name for name, _ in module.named_parameters()}
        for name, value in model.graph.initializers.items():
            if name in parameters:
                value.const_value = None
        _simplify(model)  # not in fake mode, where constants that are copied become whatever the memory held
    _name_nodes(model)
    _strip_metadata(model)
    model.producer_name, model.producer_version = "ltx-engines", __version__
    model.graph.name = component.name
    return model


def _keep_operators(program: ExportedProgram) -> None:
    """Spares the exporter its decomposition, which traces everything twice more, mostly in sympy.

    It has a translation for every operator of ours but the cast; one without is refused by name. What decomposition
    also does, rewriting operators that change their input, must have nothing to do.
    """
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise ValueError(f"{node} changes its input, which no graph can")
    program.run_decompositions = lambda *_: program


def _cast(x: Any, dtype: int) -> Any:
    return opset23.Cast(x, to=dtype)


def _simplify(model: ir.Model) -> None:
    """Folds constants, and removes and merges what only moves data.

    Not onnxscript's whole optimizer: its rules about zeros take 1e-8, the pixel norm's epsilon, for one and drop it.
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
    """Replaces meta parameters by fake ones on the CPU, where the constants are."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                fake = torch.empty_like(parameter, device="cpu")
                owner._parameters[name] = nn.Parameter(fake, requires_grad=False)


def _dynamic_shapes(module: nn.Module, component: Component) -> dict[str, object]:
    """torch.export's dims of every argument of forward, from the named axes."""
    dims: dict[str, Dim] = {}

    def dim(axis: Axis) -> object:
        if isinstance(axis, int):
            return None
        line = line_of(axis)
        name = "tokens" if line.name == "timesteps" else line.name
        symbol = dims.setdefault(name, Dim(name, min=1))
        # An encoder divides its sizes, so it must be known what they are multiples of.
        scaled = symbol if line.factor == 1 else line.factor * symbol
        return scaled + line.offset if line.offset else scaled

    shapes = [{i: dim(a) for i, a in enumerate(p.axes) if isinstance(a, str)} for p in component.inputs]
    return inspect.signature(module.forward).bind(*shapes).arguments


def _name_nodes(model: ir.Model) -> None:
    """Puts the module's path in front of each node's name, so that a profile can be read and blocks be told apart.

    A node that a rewrite has made belongs where its first input comes from.
    """
    for i, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if scopes or maker is None:
            module = scopes[-2] if len(scopes) > 1 else ""
        else:
            module = (maker.name or "").partition("/")[0]
        node.name = f"{module or 'graph'}/{node.op_type}_{i}"


def _strip_metadata(model: ir.Model) -> None:
    """Removes the exporter's notes, which hold paths of the machine and outweigh the graph."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _name_axes(model: ir.Model, component: Component) -> None:
    """Gives every port its axes by name, which also frees `timesteps` from `tokens`.

    Shapes in between are removed: they were traced with one timestep per token and would mislead a backend.
    """
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    for ports, values in ((component.inputs, model.graph.inputs), (component.outputs, model.graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.shape = ir.Shape(port.axes)


def _views_as_asked() -> AbstractContextManager[None]:
    """Gives a reshaped tensor the sizes that were asked for, not what torch derives of the ones before.

    An encoder's sizes become quotients of quotients otherwise, and tracing takes three times as long.
    """
    return tracing_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's and onnx_ir's remarks about their own internals and about weights without data."""
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
