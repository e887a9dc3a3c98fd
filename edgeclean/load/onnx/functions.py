"""Functions that an ONNX file or ONNX itself defines, put in place of the nodes that call them.

Exporters write some layers so (`Swish`, a normalisation). A function may call others, each twice,
so that a few hundred bytes stand for a billion nodes: they are counted before any is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from onnx import FunctionProto, ModelProto, NodeProto, helper, inliner

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.graph import OWN_DOMAINS, names_of, own_opset, with_shapes
from edgeclean.load.onnx.writer import GraphWriter

ATTENTION = "Attention"  # ONNX's own, of opset 23, which it defines by older operators
ATTENTION_NODES = 128  # of one, at most; 40 to 80 in onnx 1.23
MOST_DEPTH = 32  # of functions that call functions, and of graphs in graphs
_WAY_OUT = (
    "export it with one opset for the graph and its functions, or without functions "
    "(onnx.inliner.inline_local_functions)"
)
_Name = tuple[str, str, str]


def without_functions(model: ModelProto, limits: LoadLimits) -> ModelProto:
    """Return the model with each of its own functions where it is called.

    One of another opset than the graph's is brought to that by ONNX's own version converter.

    Raises:
        InputRejectedError: they call each other round in a circle or too deeply, or would make more
            nodes than ``limits.onnx_nodes``, or cannot be put in place.
    """
    if not model.functions:
        return model
    bodies = {_name_of(one): one for one in model.functions}
    counted: dict[_Name, int] = {}
    count = _count(model.graph.node, bodies, counted, 0)
    if count > limits.onnx_nodes:
        raise InputRejectedError(
            f"with its functions in place the graph has {count} nodes; the limit onnx_nodes is "
            f"{limits.onnx_nodes}"
        )
    try:
        inlined = inliner.inline_local_functions(model)
        if inlined.functions:  # those of another opset than the graph's
            inlined = _converted(inlined)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - native code raises many kinds on hostile graphs
        raise InputRejectedError(
            f"the ONNX file's functions cannot be put in place ({first_line(error)}); {_WAY_OUT}"
        ) from None
    if inlined.functions:
        left = inlined.functions[0]
        raise InputRejectedError(
            f"the ONNX file's function {left.name[:80]!r} imports other versions of operators than "
            f"the graph, and cannot be put in place; {_WAY_OUT}"
        )
    return inlined


def without_attention(model: ModelProto, limits: LoadLimits) -> ModelProto:
    """Return the model with ONNX's own definition in place of each Attention, if it has one.

    Raises:
        InputRejectedError: that would make more nodes than ``limits.onnx_nodes``.
    """
    nodes = model.graph.node
    many = sum(node.op_type == ATTENTION and node.domain in OWN_DOMAINS for node in nodes)
    if not many:
        return model
    count = len(nodes) + many * ATTENTION_NODES
    if count > limits.onnx_nodes:
        raise InputRejectedError(
            f"with its Attention nodes written out the graph has {count} nodes; the limit "
            f"onnx_nodes is {limits.onnx_nodes}"
        )
    try:
        return inliner.inline_selected_functions(
            _with_types(model), [("", ATTENTION)], exclude=False, inline_schema_functions=True
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - what stays is refused as an operator that is not known
        return model


def _converted(model: ModelProto) -> ModelProto:
    """Return the model with its functions in place, in the graph's opset, the outermost first.

    The inliner asks for the types of what it converts, and those within a function nobody infers.
    """
    left = list(model.functions)
    while left:
        inner = {name for one in left for name in _called(one.node)}
        outer = [one for one in left if _name_of(one) not in inner]
        if not outer:
            break  # what the graph does not call may call itself
        typed = _with_types(model)
        del typed.functions[:]
        typed.functions.extend(outer)
        known = names_of(typed.graph)
        model = inliner.inline_local_functions(typed, convert_version=True)
        _name_apart_(model, known)
        left = [one for one in left if _name_of(one) in inner]
        model.functions.extend(left)
    return model


def _name_apart_(model: ModelProto, known: Collection[str]) -> None:
    """Give names of their own to values that are not known: the converter's are alike in each call.

    Nodes stand in the order they run in, and read what was made of a name last.
    """
    writer = GraphWriter(model.graph, own_opset(model))
    made: set[str] = set()
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        for place, name in enumerate(node.output):
            if name in made and name not in known:
                renamed[name] = node.output[place] = writer.name(name)
            made.add(name)


def _called(nodes: Iterable[NodeProto]) -> Iterator[_Name]:
    """Yield what nodes call, and those of the graphs within them."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _called(graph.node)


def _with_types(model: ModelProto) -> ModelProto:
    """Return the model with the types of its values and weights, which the inliner may ask for."""
    known = with_shapes(model)
    for one in model.graph.initializer:
        value = helper.make_tensor_value_info(one.name, one.data_type, one.dims)
        known.graph.value_info.append(value)
    return known


def _count(
    nodes: Iterable[NodeProto],
    bodies: dict[_Name, FunctionProto],
    counted: dict[_Name, int],
    depth: int,
) -> int:
    """Return how many nodes there will be; each function is counted once."""
    if depth > MOST_DEPTH:
        raise InputRejectedError(
            f"the ONNX file's functions call each other more than {MOST_DEPTH} deep, or in a circle"
        )
    count = 0
    for node in nodes:
        name = (node.domain, node.op_type, node.overload)
        if name in bodies:
            if name not in counted:
                counted[name] = _count(bodies[name].node, bodies, counted, depth + 1)
            count += counted[name]
        count += 1
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                count += _count(graph.node, bodies, counted, depth + 1)
    return count


def _name_of(function: FunctionProto) -> _Name:
    return function.domain, function.name, function.overload
