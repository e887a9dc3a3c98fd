"""What a pickled network says of its layers, beside their weights, held against the named code's.

A whole network in a pickle is read as its state dict, and its code comes from elsewhere. Where that
code strides, pads or divides otherwise, the weights fit and the answers are of another network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import listed, shown
from edgeclean.load.pickles import StandIn

# By the layer's name: "" for its class, and its plain values by their attributes' names.
Layers = dict[str, dict[str, Any]]
STOCK = "torch.nn.modules."
MOST_LAYERS = 10_000
MOST_VALUES = 40  # of a layer
MOST_BITS = 64  # of a whole number
MOST_TOLD = 5
_CLASS = "class"
# Attributes of PyTorch's own layers that decide what they compute.
_DECIDING = frozenset(
    {
        *("stride", "padding", "dilation", "groups", "kernel_size", "output_padding"),
        *("padding_mode", "eps", "num_groups", "normalized_shape", "negative_slope", "min_val"),
        *("max_val", "alpha", "beta", "lambd", "threshold", "value", "approximate", "dim"),
        *("scale_factor", "size", "mode", "align_corners", "output_size", "ceil_mode"),
        *("count_include_pad", "divisor_override", "norm_type", "upscale_factor", "k"),
        *("downscale_factor", "start_dim", "end_dim"),
    }
)
# Classes that compute the same in evaluation, or nothing.
_ALIKE = (
    frozenset({"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"}),
    frozenset({"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "Identity"}),
    frozenset({"Linear", "NonDynamicallyQuantizableLinear"}),
    frozenset({"Softmax", "Softmax2d"}),
)
_UNTOLD = frozenset({"training", "inplace", "call_super_init", "dump_patches"})


def layers_of(modules: Iterator[tuple[str, StandIn]]) -> Layers:
    """Return the class and the plain values of each module, as JSON has them.

    Args:
        modules: the pickled modules by their names.
    """
    layers: Layers = {}
    for name, node in modules:
        if len(layers) == MOST_LAYERS:
            break
        plain = {
            key: list(one) if isinstance(one, tuple) else one
            for key, one in node.state.items()
            if isinstance(key, str) and len(key) <= 100 and key not in _UNTOLD and _is_plain(one)
        }
        kept = sorted(plain, key=lambda key: key not in _DECIDING)[:MOST_VALUES]
        layers[name] = {**{key: plain[key] for key in kept}, _CLASS: node.kind[:200]}
    return layers


def differences(layers: Mapping[str, Mapping[str, Any]], module: nn.Module) -> tuple[str, ...]:
    """Return, a few words each, what values of the user's own classes the file has otherwise.

    Args:
        layers: of the file, under the names that the module has for them.
        module: what the named code made.

    Raises:
        InputRejectedError: a layer of PyTorch's own is another one in the file, or computes
            something else.
    """
    stock: list[str] = []
    own: list[str] = []
    for name, layer in module.named_modules():
        said = layers.get(name)
        if said is None:
            continue
        both_stock = said[_CLASS].startswith(STOCK) and type(layer).__module__.startswith(STOCK)
        if both_stock and not _alike(said[_CLASS].rpartition(".")[2], type(layer).__name__):
            stock.append(
                f"{name} is {said[_CLASS].rpartition('.')[2]}, {type(layer).__name__} here"
            )
            continue
        for key, value in said.items():
            if key == _CLASS or key not in vars(layer):  # or of another version of PyTorch
                continue
            here = vars(layer)[key]
            if not _is_plain(here) or _same(value, here):
                continue
            words = f"{name or 'it'}.{key} is {shown(value)}, {shown(here)} here"
            if not both_stock:
                own.append(words)
            elif key in _DECIDING:
                stock.append(words)
    if stock:
        raise InputRejectedError(
            f"the file holds a whole network, and the named code makes another of its weights: "
            f"{listed(stock, MOST_TOLD, between='; ')}. Give the code that made it; if the code is "
            "right as it is, save torch.save(model.state_dict(), ...) instead"
        )
    return tuple(own[:MOST_TOLD])


def _is_plain(value: Any) -> bool:
    """Return whether it is a value that JSON and a line of text have, and no endless number."""
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return False
    if isinstance(value, tuple | list):
        return len(value) <= 8 and all(
            isinstance(one, int | float) and _is_plain(one) for one in value
        )
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= 50)
    )


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are one, where a number stands for as many of it as are needed."""
    one, other = (tuple(each) if isinstance(each, tuple | list) else each for each in (one, other))
    if isinstance(one, tuple) != isinstance(other, tuple):
        many, single = (one, other) if isinstance(one, tuple) else (other, one)
        return bool(many) and all(each == single for each in many)
    return bool(one == other)


def _alike(one: str, other: str) -> bool:
    return one == other or any(one in group and other in group for group in _ALIKE)
