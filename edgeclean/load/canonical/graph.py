"""A network's code as a graph of PyTorch's own functions, by ``torch.export``.

The user's code runs here on tensors without numbers, once for two images and once for three: what
differs between the two graphs depends on the number of images. (One graph with a symbol for that
number would refuse code that says ``len(images)``.) The graphs are functional: nothing in them
changes a value in place.
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
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

SIZES = (2, 3)  # numbers of images


class CannotWriteError(Exception):
    """The code cannot be written out; the text says where and why, in a line."""


class DecidesByNumbersError(CannotWriteError):
    """The code decides by numbers that it computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One network as a list of function calls.

    Attributes:
        nodes: all calls that the output needs, in their order, for two images.
        twins: the same calls for three images, by those for two.
        images: the node of the images.
        output: the node whose value is returned.
        tensors: parameters, buffers and constants by the node that stands for each.
        names: the dotted names of those, where they have one.
    """

    nodes: tuple[fx.Node, ...]
    twins: Mapping[fx.Node, fx.Node]
    images: fx.Node
    output: fx.Node
    tensors: Mapping[fx.Node, Tensor]
    names: Mapping[fx.Node, str]


def exported(module: nn.Module, input_shape: tuple[int, int, int], most_nodes: int) -> Graph:
    """Write out what a module computes, for two numbers of images.

    Args:
        module: in evaluation mode; gives one tensor.
        input_shape: channels, height and width of an image.
        most_nodes: calls that the graph may have.

    Raises:
        CannotWriteError: the code decides by the images' numbers, does something else for another
            number of images, or something that ``torch.export`` does not know; or the graph is too
            large.
    """
    programs = []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _quiet():
            for count in SIZES:
                images = torch.zeros(count, *input_shape)
                program = torch.export.export(module, (images,), strict=False)
                if len(program.graph.nodes) > most_nodes:
                    raise CannotWriteError(
                        f"it makes {len(program.graph.nodes)} calls; the limit onnx_nodes is "
                        f"{most_nodes}"
                    )
                # None is decomposed, but it makes the graph functional.
                programs.append(program.run_decompositions({}))
    except CannotWriteError:
        raise
    except Exception as error:
        raise _reason(error) from error
    return _graph(*programs)


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


def _graph(program: ExportedProgram, other: ExportedProgram) -> Graph:
    tensors: dict[fx.Node, Tensor] = {}
    names: dict[fx.Node, str] = {}
    by_name = {node.name: node for node in program.graph.nodes}
    for one in program.graph_signature.input_specs:
        if one.kind is not InputKind.USER_INPUT and one.target is not None:
            known = program.state_dict if one.target in program.state_dict else program.constants
            tensors[by_name[one.arg.name]] = known[one.target]
            names[by_name[one.arg.name]] = one.target.removeprefix("network.")
    (images, output), (_, output_again) = _ends(program), _ends(other)
    nodes, others = _needed(program.graph, output), _needed(other.graph, output_again)
    if [node.target for node in nodes] != [node.target for node in others]:
        raise CannotWriteError("its code does something else for each number of images")
    twins = dict(zip(nodes, others, strict=True))
    twins |= dict(zip(_placeholders(program.graph), _placeholders(other.graph), strict=True))
    return Graph(
        nodes=nodes, twins=twins, images=images, output=output, tensors=tensors, names=names
    )


def _ends(program: ExportedProgram) -> tuple[fx.Node, fx.Node]:
    """Return the node of the images and that of the answer."""
    signature = program.graph_signature
    taken = [one for one in signature.input_specs if one.kind is InputKind.USER_INPUT]
    given = [one for one in signature.output_specs if one.kind is OutputKind.USER_OUTPUT]
    by_name = {node.name: node for node in program.graph.nodes}
    if len(taken) != 1 or len(given) != 1 or given[0].arg.name not in by_name:
        raise CannotWriteError("it takes or returns something else than one tensor")
    return by_name[taken[0].arg.name], by_name[given[0].arg.name]


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


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


def _reason(error: Exception) -> CannotWriteError:
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return DecidesByNumbersError(
            "its code decides by numbers that it computed (an if, a loop, float() or .item())"
        )
    line = next((one.strip() for one in text.splitlines() if one.strip()), "")
    return CannotWriteError(f"{type(error).__name__}: {line[:200]}")


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of a call by their names, defaults included."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)  # noqa: S101 - callers look first
    given = dict(zip((one.name for one in target._schema.arguments), node.args, strict=False))
    return {
        one.name: given.get(one.name, node.kwargs.get(one.name, one.default_value))
        for one in target._schema.arguments
    }
