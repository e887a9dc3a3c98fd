"""What a graph computes without the images: values that are known when it is written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgeclean.load.canonical.graph import SIZES, CannotWriteError, Graph, label


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
        self._twins = graph.twins
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
        if not all(one in self.values for one in node.all_input_nodes):
            return False
        known = node.meta.get("val")
        if isinstance(known, Tensor):
            self._left -= known.numel() * known.element_size()
        if self._left < 0:
            raise CannotWriteError(f"up to {label(node)} its constants pass the limit file_bytes")
        try:
            self.values[node] = self._computed(node)
        except Exception as error:
            raise CannotWriteError(f"{label(node)} cannot be computed ({error})") from error
        return True

    def _computed(self, node: fx.Node) -> Any:
        target = node.target
        assert callable(target)  # noqa: S101 - a call of a function
        inputs = [self.values[one] for one in node.all_input_nodes]
        per_batch = any(isinstance(one, PerBatch) for one in inputs)
        if not per_batch and not depends_on_number(node, self._twins[node]):
            return target(*self._filled(node.args, 0), **self._filled(node.kwargs, 0))
        values = []
        for index, one in enumerate((node, self._twins[node])):
            # The nodes of both graphs stand for the same values.
            arguments, keywords = (
                with_nodes_of(one.args, node.args),
                with_nodes_of(one.kwargs, node.kwargs),
            )
            values.append(target(*self._filled(arguments, index), **self._filled(keywords, index)))
        first, second = values
        if isinstance(first, Tensor) and first.shape == second.shape and torch.equal(first, second):
            return first
        return PerBatch(tuple(values))

    def _filled(self, arguments: Any, index: int) -> Any:
        def value(node: fx.Node) -> Any:
            known = self.values[node]
            return known.values[index] if isinstance(known, PerBatch) else known

        return fx.map_arg(arguments, value)


def depends_on_number(node: fx.Node, twin: fx.Node) -> bool:
    """Return whether two calls differ in their plain arguments: by the number of images."""
    return bool(_plain((node.args, node.kwargs)) != _plain((twin.args, twin.kwargs)))


def with_nodes_of(arguments: Any, other: Any) -> Any:
    """Return arguments with the nodes that stand in the same places of others."""
    if isinstance(other, fx.Node):
        return other
    if isinstance(arguments, Mapping):
        return {key: with_nodes_of(one, other[key]) for key, one in arguments.items()}
    if isinstance(arguments, list | tuple):
        return tuple(with_nodes_of(one, two) for one, two in zip(arguments, other, strict=True))
    return arguments


def _plain(argument: Any) -> Any:
    """Return arguments without their nodes, such that they can be compared."""
    if isinstance(argument, fx.Node):
        return None
    if isinstance(argument, Mapping):
        return {key: _plain(one) for key, one in argument.items()}
    if isinstance(argument, list | tuple):
        return [_plain(one) for one in argument]
    return argument
