"""Convert the results of stages to bytes and back: JSON and plain tensors, never a pickle.

Only the classes named here are ever built. Tensors keep their strides and their device: a
convolution may sum in another order for another memory layout, a resumed run must give the same
bytes, and a tensor of a GPU is needed there.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from edgeclean.backdoor.findings import ScanReport, SearchRecord, Suspect
from edgeclean.backdoor.selection import NamedClass, Selection
from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger, WarpTrigger
from edgeclean.compression.factorisation import Factorisation, Separable, SeparableKernel
from edgeclean.compression.plan import LayerPlan, RankPlan, UnitPlan
from edgeclean.networks.layers import evaluated
from edgeclean.networks.state import (
    FinetunedNetwork,
    Network,
    PurifiedNetwork,
    StageRecord,
    SyntheticImages,
)
from edgeclean.networks.structure import StructureFinding, StructureReport

_CLASSES: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        AdditiveTrigger,
        Factorisation,
        LayerPlan,
        MaskedTrigger,
        NamedClass,
        RankPlan,
        ScanReport,
        SearchRecord,
        Selection,
        Separable,
        SeparableKernel,
        StageRecord,
        StructureFinding,
        StructureReport,
        Suspect,
        UnitPlan,
        SyntheticImages,
        WarpTrigger,
    )
}
_NETWORKS: dict[str, type[Network]] = {
    one.__name__: one for one in (PurifiedNetwork, FinetunedNetwork)
}
_TREE = "tree"  # the one entry of the file's metadata: with two, their order is random


def to_bytes(value: object) -> bytes:
    """Return a stage's result as a safetensors file.

    Raises:
        TypeError: it holds something that is not listed here.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(value, tensors)
    text = json.dumps(tree, separators=(",", ":"))
    return bytes(safetensors.torch.save(tensors, metadata={_TREE: text}))


def on_device(tensor: Tensor, device: str) -> Tensor:
    """Move the tensor to the device; its strides stay as they are."""
    return tensor.to(device)


def from_bytes(
    contents: bytes,
    like: Network | None = None,
    *,
    place: Callable[[Tensor, str], Tensor] = on_device,
) -> Any:
    """Return the result that `to_bytes` was given, every tensor on the device that it lay on.

    Args:
        contents: the bytes that it returned.
        like: a network of the same layers, for a stage whose result is a network; its device is
            the result's.
        place: moves a tensor to a device, by the device's name.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: the bytes are not such a result, or not of
            these layers.
    """
    length = int.from_bytes(contents[:8], "little")
    tree = json.loads(json.loads(contents[8 : 8 + length])["__metadata__"][_TREE])
    return _decode(tree, _Tensors(safetensors.torch.load(contents), place), like)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return _put(value, tensors)
    if isinstance(value, Network):
        state = value.module.state_dict()
        weights = {name: _put(tensor, tensors) for name, tensor in state.items()}
        history = _encode(value.history, tensors)
        return {"network": type(value).__name__, "weights": weights, "history": history}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(one, tensors) for one in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(one, tensors) for key, one in value.items()}}
    name = type(value).__name__
    if _CLASSES.get(name) is not type(value):
        raise TypeError(f"a {name} cannot be kept")
    fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    return {"class": name, "fields": {key: _encode(one, tensors) for key, one in fields.items()}}


def _put(tensor: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
    name = str(len(tensors))
    plain = tensor.detach().cpu()
    tensors[name] = plain.clone(memory_format=torch.contiguous_format)
    # A depthwise or 1x1 kernel is contiguous in either format; a stage's key tells them apart.
    usual = tensors[name].stride()
    stride = list(plain.stride()) if _is_dense(plain) and plain.stride() != usual else None
    return {"tensor": name, "stride": stride, "device": str(tensor.device)}


def _is_dense(tensor: Tensor) -> bool:
    """Return whether its numbers lie side by side, in whatever order of its axes."""
    expected = 1
    axes = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in (axis for axis in axes if axis[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensors:
    """The tensors of a file by name, and the function that moves them to their devices."""

    by_name: Mapping[str, Tensor]
    place: Callable[[Tensor, str], Tensor]

    def plain(self, tree: Mapping[str, Any]) -> Tensor:
        """Return a tensor on the CPU, with its strides."""
        tensor = self.by_name[tree["tensor"]]
        if tree["stride"] is None:
            return tensor
        return torch.empty_strided(tensor.shape, tree["stride"], dtype=tensor.dtype).copy_(tensor)

    def placed(self, tree: Mapping[str, Any]) -> Tensor:
        """Return a tensor on the device where it lay."""
        return self.place(self.plain(tree), tree["device"])


def _decode(tree: Any, tensors: _Tensors, like: Network | None) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors.placed(tree)
    if "network" in tree:
        return _network(tree, tensors, like)
    if "class" in tree:
        fields = {key: _decode(one, tensors, like) for key, one in tree["fields"].items()}
        return _CLASSES[tree["class"]](**fields)
    if "dict" in tree:
        return {key: _decode(one, tensors, like) for key, one in tree["dict"].items()}
    kind = tuple if "tuple" in tree else list
    return kind(_decode(one, tensors, like) for one in tree[kind.__name__])


def _network(tree: Mapping[str, Any], tensors: _Tensors, like: Network | None) -> Any:
    if like is None:
        raise ValueError("a network needs one of the same layers")
    weights = {name: tensors.plain(one) for name, one in tree["weights"].items()}
    module = copy.deepcopy(like.module)
    for name, tensor in module.state_dict().items():
        if name not in weights or weights[name].shape != tensor.shape:
            raise ValueError(f"{name} is not of these layers")
        weights[name] = weights[name].to(tensor.device)
    # Put in the place of the module's own tensors, not copied into them: they keep their strides.
    module.load_state_dict(weights, strict=True, assign=True)
    return _NETWORKS[tree["network"]](
        module=evaluated(module),
        spec=like.spec,
        source_sha256=like.source_sha256,
        history=_decode(tree["history"], tensors, like),
    )
