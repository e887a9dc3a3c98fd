"""The cost of running a network once, bounded while it runs, before each operation.

The image shape comes with the checkpoint, in a few bytes of text: 4096 x 4096 images would make a
network of a megabyte take the machine's memory. So does one convolution with much padding, and a
pool with a large window takes a minute; none of the two puts out much.

Every operation is counted, a layer's or not, by what it takes in and puts out. What it will put out
is asked of PyTorch first, which answers by shapes alone ("meta" tensors) and takes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from edgeclean.load.bill import Bill, Cost, convolution_cost
from edgeclean.load.limits import LoadLimits


@contextmanager
def bounded_cost(
    module: nn.Module, input_shape: tuple[int, int, int], limits: LoadLimits
) -> Iterator[Bill]:
    """Stop the module, within the context, where one image takes more than the limits.

    The cost is looked at before each operation runs. Views, and what is computed of weights alone,
    cost nothing.

    Yields:
        The bill, which grows while the module runs.

    Raises:
        InputRejectedError: its operations put out more than ``limits.activations`` numbers, take
            more than ``limits.macs`` multiply-accumulates or read more than ``limits.reads``
            numbers, or one of them holds more than ``limits.operands`` at once.
    """
    bill = Bill(limits)
    where = f"one image of {'x'.join(map(str, input_shape))}"
    numbers = math.prod(input_shape)
    bill.add(Cost(outputs=numbers, operands=numbers), where)
    with _Counting(bill, where, module):
        yield bill


class _Counting(TorchDispatchMode):
    """Puts every operation on the bill before it runs."""

    def __init__(self, bill: Bill, where: str, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bill, self._where = bill, where
        held = [
            tensor
            for tensor in (*module.parameters(), *module.buffers())
            if not is_lazy(tensor)  # it has no memory yet: its first image is counted with it
        ]
        self._weights = {id(weight) for weight in held}
        # A view of a weight is another tensor in the same memory.
        self._storages = frozenset(_storage(weight) for weight in held if weight.numel())

    def __torch_dispatch__(
        self, func: Any, types: Any, inputs: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count, then run; what PyTorch cannot foretell is counted when it is there."""
        named = kwargs or {}
        given = _tensors((inputs, named))
        own = bool(given) and all(id(tensor) in self._weights for tensor in given)
        if func.is_view or own:
            return func(*inputs, **named)
        foreseen = _foreseen(func, inputs, named)
        if foreseen is not None:
            self._bill.add(cost_of(func, inputs, named, foreseen, self._storages), self._where)
        outputs = func(*inputs, **named)
        if foreseen is None:
            self._bill.add(cost_of(func, inputs, named, outputs, self._storages), self._where)
        return outputs


def cost_of(
    func: Any,
    inputs: Sequence[Any],
    named: Mapping[str, Any],
    outputs: Any,
    weights: frozenset[int] = frozenset(),
) -> Cost:
    """Return what one operation of PyTorch takes; of an unknown one its inputs and outputs.

    Args:
        func: the operation.
        inputs: its arguments by place.
        named: its arguments by name.
        outputs: what it puts out, with or without numbers.
        weights: where weights lie in memory, which were counted when they were read.
    """
    given, outputs = _tensors((inputs, named)), _tensors(outputs)
    name = func._schema.name.removeprefix("aten::")
    arguments = (argument.name for argument in func._schema.arguments)
    by_name = {**dict(zip(arguments, inputs, strict=False)), **named}
    rule = _RULES.get(name, _pool if "pool" in name else _plain)
    # What is made of nothing is no activation, but it is memory all the same.
    put_out = sum(one.numel() for one in outputs if one.is_floating_point()) if given else 0
    macs, reads, beside = rule(by_name, outputs) if outputs else (0, 0, 0)
    values = [one for one in given if not weights or _storage(one) not in weights]
    held = _words([*values, *outputs])
    return Cost(
        outputs=put_out,
        macs=macs,
        reads=sum(one.numel() for one in given) + reads,
        # Many an operation works on a copy of its own, in another order.
        operands=held + max(held, beside),
    )


def _foreseen(func: Any, inputs: Any, named: Mapping[str, Any]) -> list[Tensor] | None:
    """Return what an operation will put out, without numbers; None where PyTorch cannot tell."""
    places, options = tree_map_only(Tensor, _without_numbers, (inputs, dict(named)))
    if any(argument.name == "device" for argument in func._schema.arguments):
        options["device"] = torch.device("meta")
    try:
        return _tensors(func(*places, **options))
    except Exception:  # noqa: BLE001 - the operation itself will say what is wrong, or run
        return None


def _without_numbers(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


def _words(tensors: Iterable[Tensor]) -> int:
    """Return memory as so many numbers of four bytes; an index has eight."""
    return sum(-(-one.numel() * one.element_size() // 4) for one in tensors)


# Each rule returns multiply-accumulates, reads beyond the inputs, and memory beyond the operands.
_Rule = Callable[[dict[str, Any], list[Tensor]], tuple[int, int, int]]


def _plain(_given: dict[str, Any], _outputs: list[Tensor]) -> tuple[int, int, int]:
    return 0, 0, 0


def _convolution(given: dict[str, Any], outputs: list[Tensor]) -> tuple[int, int, int]:
    shapes = (given["input"].shape, given["weight"].shape, outputs[0].shape)
    return convolution_cost(*shapes, given["groups"], given["transposed"])


def _pool(given: dict[str, Any], outputs: list[Tensor]) -> tuple[int, int, int]:
    """The window, given or, of an adaptive pool, from its input's and output's sides."""
    images, output = given["self"].shape, outputs[0].shape
    sides = len(output) - 2
    window = given.get("kernel_size")
    if window is None:
        pairs = zip(images[-sides:], output[-sides:], strict=True)
        window = [-(-side // max(1, places)) + 1 for side, places in pairs]
    area = math.prod(window) ** (sides if len(window) == 1 else 1)
    return 0, outputs[0].numel() * area, 0


def _matrix(given: dict[str, Any], outputs: list[Tensor]) -> tuple[int, int, int]:
    left = next(given[name] for name in ("mat1", "batch1", "mat", "input", "self") if name in given)
    return outputs[0].numel() * left.shape[-1], 0, 0


def _attention(given: dict[str, Any], outputs: list[Tensor]) -> tuple[int, int, int]:
    pairs = math.prod(given["query"].shape[:-1]) * given["key"].shape[-2]
    return pairs * (given["query"].shape[-1] + given["value"].shape[-1]), 0, pairs


_RULES: dict[str, _Rule] = {
    "convolution": _convolution,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "addbmm", "linear", "mv", "addmv"), _matrix),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_attention_math": _attention,
}
