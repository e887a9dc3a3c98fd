"""Turn a graph of function calls into a `StepNetwork` of stock layers and plain operations.

What depends on weights alone is computed once, so that a standardised or otherwise made weight is
that of a plain layer. Sizes that depend on the number of images go: a reshape gets -1 for them, and
a constant that is repeated for each image is a `ForEachImage`.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeclean.load.canonical.constants import Constants, PerBatch, depends_on_number
from edgeclean.load.canonical.graph import (
    CannotWriteError,
    Graph,
    arguments,
    label,
    operation,
    where,
)
from edgeclean.load.canonical.layers import stock_layer, taken_by
from edgeclean.networks.operations import (
    ForEachImage,
    Given,
    Held,
    MeanOfParts,
    Operation,
    above,
    addcdiv,
    affine_grid,
    affine_positions,
    asinh,
    bilinear,
    cast,
    copied,
    cosh,
    differences,
    divided_pool,
    entry_written,
    erfc,
    exp2,
    expm1,
    frac,
    hypot,
    logaddexp,
    max_of_parts,
    rms_norm,
    shuffled,
    sinc,
    sinh,
    slice_written,
    softplus,
    trunc,
    turned,
    xlogy,
)
from edgeclean.networks.steps import Call, StepNetwork, free_name

_aten = torch.ops.aten
_IMAGES = "images"
_RESHAPES = frozenset(
    {
        *(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default),
        _aten.squeeze.default,  # of one image alone it would drop the axis of the images too
    }
)
# What ONNX's exporter does not know by this name, or not in every opset: another type of numbers,
# parts of a tensor that code has written to, a norm, channels and planes in another order.
_WRITES: dict[Any, Any] = {
    _aten._to_copy.default: cast,
    _aten.copy.default: copied,
    _aten.addcdiv.default: addcdiv,
    _aten.asinh.default: asinh,
    _aten.bilinear.default: bilinear,
    _aten.channel_shuffle.default: shuffled,
    _aten.cosh.default: cosh,
    _aten.diff.default: differences,
    _aten.erfc.default: erfc,
    _aten.special_erfc.default: erfc,
    _aten.exp2.default: exp2,
    _aten.special_exp2.default: exp2,
    _aten.expm1.default: expm1,
    _aten.special_expm1.default: expm1,
    _aten.fix.default: trunc,
    _aten.frac.default: frac,
    _aten.hypot.default: hypot,
    _aten.logaddexp.default: logaddexp,
    _aten.rms_norm.default: rms_norm,
    _aten.rot90.default: turned,
    _aten.sinc.default: sinc,
    _aten.special_sinc.default: sinc,
    _aten.sinh.default: sinh,
    _aten.softplus.default: softplus,
    _aten.threshold.default: above,
    _aten.trunc.default: trunc,
    _aten.xlogy.Tensor: xlogy,
    _aten.special_xlogy.default: xlogy,
    _aten.slice_scatter.default: slice_written,
    _aten.select_scatter.default: entry_written,
}
_ADAPTIVE = frozenset({_aten.adaptive_avg_pool2d.default, _aten.adaptive_max_pool2d.default})
_PADS = frozenset({_aten.pad.default, _aten.constant_pad_nd.default})
# What leaves its first argument as it is, in a graph in which nothing changes in place.
_IDENTITIES = frozenset(
    {
        *(_aten.clone.default, _aten.alias.default, _aten.detach.default),
        *(_aten.contiguous.default, _aten.lift_fresh_copy.default),
    }
)
_DROPOUTS = frozenset(
    {
        *(_aten.dropout.default, _aten.feature_dropout.default),
        *(_aten.alpha_dropout.default, _aten.feature_alpha_dropout.default),
    }
)
# Where numbers lie, and in which order, is the caller's choice.
_MEMORY = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})


def written(graph: Graph, leaves: Collection[str], most_bytes: int) -> StepNetwork:
    """Write a graph as a network of its own modules, with the weights' names where there are some.

    Args:
        graph: of one network.
        leaves: the dotted names of its modules that have no others inside.
        most_bytes: that constants computed on the way may take.

    Raises:
        CannotWriteError: a call is random, uses a batch's statistics, depends on the number of
            images in another way than through shapes, or is no function of PyTorch's own.
    """
    writer = _Writer(graph, frozenset(leaves), most_bytes)
    for node in graph.nodes:
        writer.add(node)
    output = writer.value(graph.output)
    return StepNetwork(writer.modules, writer.calls, (_IMAGES, output))


class _Writer:
    """The modules and calls so far, and the value that each node has become."""

    def __init__(self, graph: Graph, leaves: Collection[str], most_bytes: int) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.calls: list[Call] = []
        self._twins = graph.twins
        self._constants = Constants(graph, most_bytes)
        self._values: dict[fx.Node, str] = {graph.images: _IMAGES}
        self._leaves = leaves
        self._names = {_numbers(graph.tensors[node]): name for node, name in graph.names.items()}
        self._owners = {name.rpartition(".")[0] for name in graph.names.values()}
        self._shared: dict[tuple[Any, ...], str] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._padding: dict[fx.Node, list[int]] = {}  # of pads that their convolution takes over

    def value(self, node: fx.Node) -> str:
        """Return the name of a node's value, which images reach or which is there for each."""
        if node in self._values:
            return self._values[node]
        known = self._constants[node]
        axis = known.axis_of_images() if isinstance(known, PerBatch) else None
        if axis is None:
            raise CannotWriteError(f"{label(node)} depends on the number of images")
        one = known.values[0].narrow(axis, 0, 1)
        source = self._resolved(node.args[0]) if node.args else None
        same = isinstance(source, Tensor) and torch.equal(source, one)
        held = self._held(source) if same and isinstance(source, Tensor) else self._held(one)
        self._call(node, ForEachImage(held, axis), (_IMAGES,))
        return self._values[node]

    def add(self, node: fx.Node) -> None:
        """Add what one node computes."""
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            if target.namespace != "aten":
                raise CannotWriteError(f"{label(node)} is no function of PyTorch's own")
            if torch.Tag.nondeterministic_seeded in target.tags and not _is_certain(node):
                raise CannotWriteError(f"{label(node)} draws random numbers")
        if self._constants.take(node):
            return
        if target is operator.getitem:
            self._add_member(node)
        elif not isinstance(target, torch._ops.OpOverload):
            raise CannotWriteError(f"{label(node)} is no function of PyTorch's own")
        elif self._is_identity(node):
            self._values[node] = self.value(_first(node))
        elif target in _RESHAPES:
            self._add_operation(node, _aten.reshape.default, (_first(node), self._sizes(node)), {})
        elif target is _aten.expand.default:
            self._add_operation(node, target, (_first(node), self._expanded(node)), {})
        elif not (self._add_padding(node) or self._add_layer(node)):
            self._add_other(node)

    def _add_member(self, node: fx.Node) -> None:
        base, index = node.args
        assert isinstance(base, fx.Node)  # noqa: S101 - by the definition of the graph
        if base.target is _aten._native_batch_norm_legit_no_training.default:
            if index != 0:
                raise CannotWriteError(f"{label(node)} takes statistics of a batch")
            self._values[node] = self.value(base)
        else:
            self._add_operation(node, operator.getitem, (base, index), {})

    def _add_padding(self, node: fx.Node) -> bool:
        """Leave even zeros around an image to the one convolution that takes it."""
        users = list(node.users)
        if node.target not in _PADS or len(users) != 1:
            return False
        given = arguments(node)
        widths: Any = given["pad"]
        number, mode = given.get("value") or 0, given.get("mode", "constant")
        taken = arguments(users[0]) if users[0].target is _aten.conv2d.default else {}
        even = isinstance(widths, list | tuple) and len(widths) == 4 and widths[::2] == widths[1::2]
        if not even or number != 0 or mode != "constant" or min(widths) < 0:
            return False
        bare = taken.get("input") is node and not any(taken["padding"])
        if not bare or taken["weight"] not in self._constants:
            return False
        self._padding[node] = [widths[2], widths[0]]
        self._values[node] = self.value(_first(node))
        return True

    def _add_layer(self, node: fx.Node) -> bool:
        given = {name: self._resolved(one) for name, one in arguments(node).items()}
        names = taken_by(node.target, given)
        if names is None:
            return False
        taken, weight = given[names[0]], given[names[1]]
        if taken in self._padding:
            given["padding"] = self._padding[taken]
        axes = taken.meta["val"].dim()
        facts = sorted((name, _identity(one)) for name, one in given.items() if one is not taken)
        key = (node.target, axes, *facts)
        if key not in self._shared:
            layer = stock_layer(node.target, given, axes, self._parameter)
            self._shared[key] = self._registered(self._layer_name(node, weight), layer)
        self._called(node, self._shared[key], (self.value(taken),))
        return True

    def _add_other(self, node: fx.Node) -> None:
        if node.target in _ADAPTIVE:
            plane = tuple(_first(node).meta["val"].shape[-2:])
            pooled = tuple(arguments(node)["output_size"])
            if any(side % part for side, part in zip(plane, pooled, strict=True)):
                if node.target is _aten.adaptive_max_pool2d.default:
                    self._add_operation(node, max_of_parts, (_first(node), plane, pooled), {})
                else:
                    self._call(node, MeanOfParts(plane, pooled), (self.value(_first(node)),))
                return
        if node.target is _aten.avg_pool2d.default and arguments(node)["divisor_override"]:
            given = arguments(node)
            names = ("kernel_size", "stride", "padding", "ceil_mode", "divisor_override")
            self._add_operation(
                node, divided_pool, (_first(node), *(given[name] for name in names)), {}
            )
            return
        if node.target is _aten.affine_grid_generator.default:
            given = arguments(node)
            fixed = affine_positions(given["size"][-2:], given["align_corners"])
            taken = self.value(_first(node))
            places = (Given(0), Held("constant_0"), tuple(given["size"][-2:]))
            self._call(node, Operation(affine_grid, places, {}, [fixed]), (taken,))
            return
        if depends_on_number(node, self._twins[node]):
            raise CannotWriteError(f"{label(node)} depends on the number of images")
        named = {name: one for name, one in node.kwargs.items() if name not in _MEMORY}
        function = _aten.upsample_nearest2d.vec if _repeats_pixels(node) else node.target
        self._add_operation(node, _WRITES.get(node.target, function), node.args, named)

    def _add_operation(
        self, node: fx.Node, function: Any, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        taken: list[str] = []
        held: list[Tensor] = []

        def place(argument: Any) -> Any:
            if isinstance(argument, list | tuple):
                return type(argument)(place(one) for one in argument)
            if not isinstance(argument, fx.Node):
                return argument
            known = self._resolved(argument)
            if isinstance(known, Tensor):
                held.append(self._held(known))
                return Held(f"constant_{len(held) - 1}")
            if known is not argument:
                return known
            taken.append(self.value(argument))
            return Given(len(taken) - 1)

        arguments = tuple(place(one) for one in inputs)
        keywords = {name: place(one) for name, one in named.items()}
        self._call(node, Operation(function, arguments, keywords, held), tuple(taken))

    def _is_identity(self, node: fx.Node) -> bool:
        """Return whether a call returns its first argument as it is."""
        if node.target in _IDENTITIES:
            return True
        if node.target in _DROPOUTS:
            return not arguments(node)["train"]
        given = node.args[0] if node.args else None
        if not isinstance(given, fx.Node):
            return False
        before, after = given.meta.get("val"), node.meta.get("val")
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return False
        if node.target is _aten._to_copy.default:
            return before.dtype == after.dtype
        return before.shape == after.shape and (
            node.target in _RESHAPES
            or node.target is _aten.expand.default
            or (node.target is _aten.slice.Tensor and arguments(node)["step"] == 1)
        )

    def _sides(self, node: fx.Node) -> list[int | None]:
        """Return the shape of a value, with None for a side that the number of images decides."""
        shapes = node.meta["val"].shape, self._twins[node].meta["val"].shape
        return [one if one == two else None for one, two in zip(*shapes, strict=True)]

    def _sizes(self, node: fx.Node) -> list[int]:
        """Return the sizes that a reshape asks for, -1 for the one that images decide."""
        sizes = [-1 if side is None else side for side in self._sides(node)]
        if sizes.count(-1) > 1:
            raise CannotWriteError(f"{label(node)} has the number of images in two of its axes")
        return sizes

    def _expanded(self, node: fx.Node) -> list[int]:
        before, after = self._sides(_first(node)), self._sides(node)
        before = [*[1] * (len(after) - len(before)), *before]
        sizes = []
        for one, two in zip(before, after, strict=True):
            if one != two and two is None:
                raise CannotWriteError(
                    f"{label(node)} repeats what it computes for each image of a batch"
                )
            sizes.append(-1 if one == two or two is None else two)
        return sizes

    def _resolved(self, argument: Any) -> Any:
        """Return a constant for its node; a node that images reach, or one for each, as it is."""
        if not isinstance(argument, fx.Node) or argument not in self._constants:
            return argument
        known = self._constants[argument]
        return argument if isinstance(known, PerBatch) else known

    def _held(self, tensor: Tensor) -> Tensor:
        """Return a tensor for an operation: a parameter is one, also where others have it."""
        learned = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        return self._parameter(tensor) if learned else tensor.detach().clone()

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        if id(tensor) not in self._parameters:
            numbers = tensor.detach().clone(memory_format=torch.contiguous_format)
            self._parameters[id(tensor)] = nn.Parameter(numbers)
        return self._parameters[id(tensor)]

    def _layer_name(self, node: fx.Node, weight: Tensor) -> str:
        """Return the name of the layer whose weight this is, or of the code that made it."""
        known = self._names.get(_numbers(weight), "")
        owner, _, last = known.rpartition(".")
        if known:
            return owner if owner and last in ("weight", "running_mean") else known
        return where(node) or operation(node)

    def _call(self, node: fx.Node, module: nn.Module, taken: tuple[str, ...]) -> None:
        scope, called = where(node), operation(node).strip("_")
        if scope in self._owners:  # a layer may have this name
            wanted = f"{scope}_{called}" if scope in self._leaves else f"{scope}.{called}"
        else:
            wanted = scope if scope in self._leaves else f"{scope}.{called}"
        self._called(node, self._registered(wanted.lstrip("._"), module), taken)

    def _registered(self, wanted: str, module: nn.Module) -> str:
        name = free_name(wanted, self.modules)
        self.modules[name] = module
        return name

    def _called(self, node: fx.Node, module: str, taken: tuple[str, ...]) -> None:
        self.calls.append(Call(module=module, inputs=taken, output=node.name))
        self._values[node] = node.name


def _is_certain(node: fx.Node) -> bool:
    """Return whether a call that may draw random numbers does not: dropout in evaluation."""
    given = arguments(node)
    chances = [given[name] for name in ("train", "training", "dropout_p") if name in given]
    return bool(chances) and not any(chances)


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)  # noqa: S101 - of functions whose first argument is a tensor
    return first


def _repeats_pixels(node: fx.Node) -> bool:
    """Return whether ONNX's plain ``nearest`` is what is called: by whole factors, both are."""
    if node.target is not _aten._upsample_nearest_exact2d.vec:
        return False
    sides = zip(_first(node).meta["val"].shape[2:], node.meta["val"].shape[2:], strict=True)
    factors = arguments(node)["scale_factors"] or [after / before for before, after in sides]
    return all(float(factor).is_integer() for factor in factors)


def _numbers(tensor: Tensor) -> tuple[int, int]:
    """Return what a tensor and a transposed view of it have in common."""
    return tensor.data_ptr(), tensor.numel()


def _identity(argument: Any) -> str:
    return f"tensor {id(argument)}" if isinstance(argument, Tensor) else repr(argument)
