"""The layers of a network as the algebra sees them: what may be factored, and why the rest stays.

A site is one convolution or linear layer of the *original* network, under its dotted name; a
network that is decomposed already has the same sites, with blocks in place of convolutions.
"""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeclean.errors import UsageError
from edgeclean.factors.blocks import is_block, merge_block
from edgeclean.states import JsonValue, Network

_MATRIX_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One layer that multiplies by weights.

    Attributes:
        name: dotted, as in ``named_modules``.
        module: the layer itself, or the block that stands in its place.
        positions_in: input pixels of one image, over all of its runs; 0 if it never runs.
        positions_out: output pixels likewise.
        reason: why it must stay as it is; empty if it may be factored.
    """

    name: str
    module: nn.Module
    positions_in: int
    positions_out: int
    reason: str

    def conv(self) -> nn.Conv2d:
        """The site as one convolution; only of a site that may be factored."""
        if isinstance(self.module, nn.Sequential):
            return merge_block(self.module)
        return cast(nn.Conv2d, self.module)

    def describe(self) -> dict[str, JsonValue]:
        """Name, kind and shape, for the history."""
        module = merge_block(self.module) if isinstance(self.module, nn.Sequential) else self.module
        shape = list(module.weight.shape) if isinstance(module.weight, Tensor) else []
        return {
            "name": self.name,
            "kind": _kind(module),
            "out": shape[0],
            "in": shape[1] * int(getattr(module, "groups", 1)),
            "kernel": shape[2:],
        }


def find_sites(network: Network, keep: Collection[str] = ()) -> tuple[Site, ...]:
    """All sites in the order of ``named_modules``.

    Args:
        network: plain, decomposed or truncated.
        keep: names of layers that must stay as they are.

    Raises:
        UsageError: a name in ``keep`` is no layer of the network.
    """
    modules = _site_modules(network.module)
    require_layers("--keep", keep, modules)
    positions = _positions(network, modules)
    owners = Counter(id(weight) for m in modules.values() for weight in m.parameters())
    return tuple(
        Site(
            name=name,
            module=module,
            positions_in=positions[name].pixels_in,
            positions_out=positions[name].pixels_out,
            reason=_reason_to_stay(
                module,
                kept=name in keep,
                runs=positions[name].pixels_out > 0,
                shared=any(owners[id(weight)] > 1 for weight in module.parameters()),
            ),
        )
        for name, module in modules.items()
    )


def require_layers(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are no layers.

    Raises:
        UsageError: names the first unknown one and the layers nearest to it.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
            raise UsageError(
                f"{option} {name!r} is no layer of this network; nearest: {', '.join(near)} "
                "(`edgeclean inspect` lists all)"
            )


def with_layers(module: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the module in which the named layers are replaced, wherever else they stand too."""
    changed = copy.deepcopy(module)
    by_identity = {id(changed.get_submodule(name)): new for name, new in replacements.items()}
    if id(changed) in by_identity:
        return by_identity[id(changed)]
    for parent in list(changed.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in by_identity:
                setattr(parent, child_name, by_identity[id(child)])
    return changed


def merged_module(module: nn.Module) -> nn.Module:
    """A copy in which every block is one convolution again: the network's original shape."""
    blocks = {n: m for n, m in _site_modules(module).items() if isinstance(m, nn.Sequential)}
    return with_layers(module, {name: merge_block(block) for name, block in blocks.items()})


@dataclass(slots=True)
class _Pixels:
    """A counter that a hook adds to."""

    pixels_in: int = 0
    pixels_out: int = 0

    def __call__(
        self, _layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        entered = inputs[0] if inputs else named["input"]
        self.pixels_in += entered[0, 0].numel() if entered.dim() > 2 else 1
        self.pixels_out += output[0, 0].numel() if output.dim() > 2 else 1


def _site_modules(root: nn.Module) -> dict[str, nn.Module]:
    blocks = {name: module for name, module in root.named_modules() if is_block(module)}
    inside = {id(layer) for block in blocks.values() for layer in block.children()}
    return {
        name: module
        for name, module in root.named_modules()
        if name in blocks or (isinstance(module, _MATRIX_LAYERS) and id(module) not in inside)
    }


def _positions(network: Network, modules: Mapping[str, nn.Module]) -> dict[str, _Pixels]:
    """Run one image of zeros and count the pixels that enter and leave every site."""
    positions = {name: _Pixels() for name in modules}

    probe = copy.deepcopy(network.module).eval()  # hooks are never put on the caller's module
    for name, pixels in positions.items():
        probe.get_submodule(name).register_forward_hook(pixels, with_kwargs=True)
    weight = next(probe.parameters())
    with torch.no_grad():
        probe(torch.zeros(1, *network.spec.input_shape, device=weight.device, dtype=weight.dtype))
    return positions


def _reason_to_stay(module: nn.Module, *, kept: bool, runs: bool, shared: bool) -> str:
    if kept:
        return "named by --keep"
    if not runs:
        return "does not run as a module in the forward pass"
    if is_block(module):
        return ""
    if isinstance(module, nn.Linear):
        return "a linear layer; only convolutions are factored"
    if type(module) is not nn.Conv2d:
        return f"a {type(module).__name__}; only plain Conv2d are factored"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise"
    if module.groups > 1:
        return f"grouped ({module.groups} groups)"
    if module.padding_mode != "zeros":
        return f"pads by {module.padding_mode!r}, not by zeros"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks, which a block would lose"
    return "shares its weights with another layer" if shared else ""


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if not isinstance(module, nn.Conv2d):
        return type(module).__name__
    if module.groups > 1:
        return "depthwise" if module.groups == module.in_channels else "grouped"
    return "pointwise" if module.kernel_size == (1, 1) else "convolution"
