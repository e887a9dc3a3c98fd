"""A network's code as a graph of PyTorch's own functions, by ``torch.export``.

The user's code runs here once more, on tensors without numbers, for any number of images. The
graph is functional: nothing in it changes a value in place.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

MOST_IMAGES = 2**16
_TRACED_IMAGES = 3


class CannotWriteError(Exception):
    """The code cannot be written out; the text says where and why, in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One network as a list of function calls.

    Attributes:
        nodes: all calls that the output needs, in their order.
        images: the node of the images.
        output: the node whose value is returned.
        tensors: parameters, buffers and constants by the node that stands for each.
        names: the dotted names of those, where they have one.
    """

    nodes: tuple[fx.Node, ...]
    images: fx.Node
    output: fx.Node
    tensors: Mapping[fx.Node, Tensor]
    names: Mapping[fx.Node, str]


def exported(module: nn.Module, input_shape: tuple[int, int, int], most_nodes: int) -> Graph:
    """Write out what a module computes for any number of images.

    Args:
        module: in evaluation mode; gives one tensor.
        input_shape: channels, height and width of an image.
        most_nodes: calls that the graph may have.

    Raises:
        CannotWriteError: the code decides by the images' numbers, is made for one number of images,
            or does something that ``torch.export`` does not know; or the graph is too large.
    """
    images = torch.zeros(_TRACED_IMAGES, *input_shape)
    free = {0: Dim("images", min=1, max=MOST_IMAGES)}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _quiet():
            program = torch.export.export(module, (images,), dynamic_shapes=(free,), strict=False)
            if len(program.graph.nodes) > most_nodes:
                raise CannotWriteError(
                    f"it makes {len(program.graph.nodes)} calls; the limit onnx_nodes is "
                    f"{most_nodes}"
                )
            program = program.run_decompositions({})  # none, but it makes the graph functional
    except CannotWriteError:
        raise
    except Exception as error:
        raise CannotWriteError(_reason(error)) from error
    return _graph(program)


def where(node: fx.Node) -> str:
    """Return the dotted name of the module whose code made the call; empty for the network's."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    # The network stands under this name in the module that is written out.
    return "" if path == "network" else path.removeprefix("network.")


def label(node: fx.Node) -> str:
    """Return a call in words, for messages."""
    return f"{operation(node)} in {where(node) or 'its forward'}"


def operation(node: fx.Node) -> str:
    """Return the name of the function that a node calls, without its overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def _graph(program: ExportedProgram) -> Graph:
    signature = program.graph_signature
    by_name = {node.name: node for node in program.graph.nodes}
    tensors: dict[fx.Node, Tensor] = {}
    names: dict[fx.Node, str] = {}
    images = None
    for one in signature.input_specs:
        node = by_name[one.arg.name]
        if one.kind is InputKind.USER_INPUT:
            images = node
        elif one.target is not None:
            known = program.state_dict if one.target in program.state_dict else program.constants
            tensors[node] = known[one.target]
            names[node] = one.target.removeprefix("network.")
    outputs = [one for one in signature.output_specs if one.kind is OutputKind.USER_OUTPUT]
    output = by_name.get(outputs[0].arg.name) if len(outputs) == 1 else None
    if images is None or output is None:
        raise CannotWriteError("it takes or returns something else than one tensor")
    return Graph(
        nodes=_needed(program.graph, output),
        images=images,
        output=output,
        tensors=tensors,
        names=names,
    )


def _needed(graph: fx.Graph, output: fx.Node) -> tuple[fx.Node, ...]:
    needed, waiting = {output}, [output]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node not in needed:
                needed.add(node)
                waiting.append(node)
    return tuple(node for node in graph.nodes if node in needed and node.op != "placeholder")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch.export says beside its errors to itself: the library is silent."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with redirect_stderr(io.StringIO()):  # it prints the graph of code that fails
                yield
    finally:
        logging.disable(disabled)


def _reason(error: Exception) -> str:
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return "its code decides by numbers that it computed (an if, a loop, float() or .item())"
    if "onstraint" in type(error).__name__ or "pecializ" in text:
        return "its code is made for one number of images; the batch axis must be free"
    line = next((one.strip() for one in text.splitlines() if one.strip()), "")
    return f"{type(error).__name__}: {line[:200]}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of a call by their names, defaults included."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)  # noqa: S101 - callers look first
    given = dict(zip((one.name for one in target._schema.arguments), node.args, strict=False))
    return {
        one.name: given.get(one.name, node.kwargs.get(one.name, one.default_value))
        for one in target._schema.arguments
    }
