"""What a graph computes without the images: values that are known when it is written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgeclean.load.canonical.graph import CannotWriteError, Graph, label

SIZES = (2, 3)  # numbers of images; a value for both tells how it depends on the number
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True, slots=True)
class PerBatch:
    """A value that depends on the number of images: one for each of `SIZES`."""

    values: tuple[Any, ...]

    def axis_of_images(self) -> int | None:
        """Return the axis along which a tensor is repeated for each image; None if there is none.

        Then the entries along that axis are equal, and there is one for each image.
        """
        first, second = self.values
        if not isinstance(first, Tensor) or first.dim() != second.dim():
            return None
        for axis in range(first.dim()):
            one = first.narrow(axis, 0, 1)
            sizes = (first.shape[axis], second.shape[axis])
            if sizes == SIZES and all(
                each.narrow(axis, 0, 1).shape == one.shape
                and torch.equal(each, one.expand_as(each))
                for each in self.values
            ):
                return axis
        return None


class Constants:
    """The values of nodes that no image reaches."""

    def __init__(self, graph: Graph, most_bytes: int) -> None:
        """Begin with the parameters and buffers.

        Args:
            graph: the whole.
            most_bytes: that the values computed here may take together.
        """
        self.values: dict[fx.Node, Any] = dict(graph.tensors)
        self._symbol = graph.images.meta["val"].shape[0]
        self._left = most_bytes

    def __contains__(self, node: object) -> bool:
        return node in self.values

    def __getitem__(self, node: fx.Node) -> Any:
        return self.values[node]

    @torch.no_grad()
    def take(self, node: fx.Node) -> bool:
        """Compute the node if no image reaches it; return whether it was.

        Raises:
            CannotWriteError: its values take too much memory, or it cannot be computed.
        """
        known = node.meta.get("val")
        if all(one in self.values for one in node.all_input_nodes):
            self._pay(node, known)
            self.values[node] = self._computed(node)
        elif isinstance(known, _SYMBOLIC):
            sizes = tuple(self._size(known, images, node) for images in SIZES)
            self.values[node] = PerBatch(sizes)
        elif isinstance(known, bool | int | float):
            self.values[node] = known
        else:
            return False
        return True

    def _computed(self, node: fx.Node) -> Any:
        target = node.target
        assert callable(target)  # noqa: S101 - a call of a function
        inputs = [self.values[one] for one in node.all_input_nodes]
        try:
            if not any(isinstance(one, PerBatch) for one in inputs):
                return self._run(target, node, 0)
            values = tuple(self._run(target, node, index) for index in range(len(SIZES)))
        except Exception as error:
            raise CannotWriteError(f"{label(node)} cannot be computed ({error})") from error
        first, second = values
        if isinstance(first, Tensor) and first.shape == second.shape and torch.equal(first, second):
            return first
        return PerBatch(values)

    def _run(self, target: Callable[..., Any], node: fx.Node, index: int) -> Any:
        def value(one: fx.Node) -> Any:
            known = self.values[one]
            return known.values[index] if isinstance(known, PerBatch) else known

        inputs, named = fx.map_arg((node.args, node.kwargs), value)
        return target(*inputs, **named)

    def _size(self, known: Any, images: int, node: fx.Node) -> Any:
        expression = known.node.expr
        symbol = self._symbol.node.expr
        if expression.free_symbols - {symbol}:
            raise CannotWriteError(f"{label(node)} depends on the numbers of the images")
        found = expression.subs({symbol: images})
        return int(found) if found.is_integer else float(found)

    def _pay(self, node: fx.Node, known: Any) -> None:
        if isinstance(known, Tensor) and not known.is_sparse:
            sides = [side for side in known.shape if isinstance(side, int)]
            self._left -= torch.Size(sides).numel() * known.element_size()
        if self._left < 0:
            raise CannotWriteError(f"up to {label(node)} its constants pass the limit file_bytes")
