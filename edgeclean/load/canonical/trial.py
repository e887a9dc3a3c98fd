"""Whether every stage can take a network as it is: one pass of all they do, before they do it.

The stages copy a network, hold it in channels-last order, put blocks in place of its convolutions,
look into its layers, and take gradients of batches of any size. Code may prevent each of these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.trial_images import refuse_rounding
from edgeclean.networks.autocast import channels_last
from edgeclean.networks.features import hooked
from edgeclean.networks.layers import with_layers

TOLERANCE = 1e-3  # of the largest output; another order of sums moves outputs by about 1e-6 of it
_FEW = 2  # images are several, and all that a pass keeps for its gradients is of few
_ROUNDING = 1e-7  # of numbers around one, which answers that cancel out are the difference of
_LAYERS = (_ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
# What these layers call, by name; a call from elsewhere is a layer that no stage can see.
_FUNCTIONS = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
        *("conv_transpose3d", "linear", "batch_norm"),
        *("multi_head_attention_forward", "_native_multi_head_attention"),
    }
)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a network should be written out as stock layers.

    Attributes:
        why: in words, the same in every run, naming the layer.
        needed: a stage would fail; otherwise stages see less of it than there is.
        error: what the code raised, which may hold anything; empty where it raised nothing.
    """

    why: str
    needed: bool = True
    error: str = ""

    def __str__(self) -> str:
        """Return all of it, for a message."""
        return f"{self.why}: {self.error}" if self.error else self.why


def reason_to_rewrite(
    module: nn.Module, images: Float[Tensor, "n c h w"], expected: Float[Tensor, "n k"]
) -> Reason | None:
    """Return why the stages cannot take this network as it is; None where they can.

    Args:
        module: in evaluation mode; it is left as it was.
        images: at least two.
        expected: its answers to them, finite.

    Raises:
        InputRejectedError: its answers to the same images differ from run to run, or an image's
            answer hangs on the others of the batch, or on how they are rounded.
    """
    failure = _failure(module, images, expected)
    if failure is not None:
        return failure
    hidden = _odd_layer(module) or _hidden_layer(module, images)
    return Reason(hidden, needed=False) if hidden else None


def is_close(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Return whether two answers are the same up to rounding; a NaN is not.

    The tolerance is a share of the largest: probabilities of many classes are all tiny.
    """
    if got.shape != expected.shape:
        return False
    return bool((got - expected).abs().max() <= tolerance * expected.abs().max() + _ROUNDING)


def _failure(module: nn.Module, images: Tensor, expected: Tensor) -> Reason | None:
    try:
        with torch.no_grad():
            given = images.clone()
            again = module(given)
            alone = [module(one[None].clone()) for one in images]
    except Exception as error:  # noqa: BLE001 - code of any kind raises what it likes
        return _raised(error)
    if not is_close(again, expected):
        raise InputRejectedError(
            "the network answers the same images differently from run to run; something random "
            "runs in evaluation, such as F.dropout without training=self.training"
        )
    if not torch.equal(given, images):
        return Reason("it changes its images in place")
    # Each of them: what is taken over a batch is often that of one of its images.
    pairs = [(one.reshape(-1), row) for one, row in zip(alone, expected, strict=True)]
    if any(one.shape == row.shape and not is_close(one, row) for one, row in pairs):
        refuse_rounding(module, images)
        raise InputRejectedError(
            "the network's answer to an image hangs on the others of its batch; write the part "
            "that mixes them for each image alone"
        )
    return _failure_in_stages(module, images[:_FEW], expected[:_FEW], alone[0])


def _failure_in_stages(
    module: nn.Module, images: Tensor, expected: Tensor, alone: Tensor
) -> Reason | None:
    """Do to a copy what the stages do; return what went wrong."""
    convolutions = {name: one for name, one in module.named_modules() if type(one) is nn.Conv2d}
    try:
        # A container is in the place of each convolution: code that reads its weight fails now.
        boxed = {name: nn.Sequential(copy.deepcopy(one)) for name, one in convolutions.items()}
        probe = channels_last(with_layers(module, boxed))
        with torch.enable_grad():
            pixels = images.clone(memory_format=torch.channels_last).requires_grad_()
            with _ran(module) as originals:
                answers = probe(pixels * 1)
            if originals:
                layer = f"layer {originals[0]}" if originals[0] else "the network itself"
                return Reason(f"a function of its code keeps {layer}, and a copy's layer is unused")
            if not answers.requires_grad:
                return Reason("its answers have no gradient of the images")
            (gradient,) = torch.autograd.grad(answers.sum(), pixels, allow_unused=True)
            if gradient is None:
                return Reason(
                    "no gradient of its answers reaches the images, which pass through whole "
                    "numbers or steps, such as to(torch.uint8): leave those out of forward, for "
                    "--mean and --std scale pixels"
                )
        copied = copy.deepcopy(probe)
        with torch.no_grad():
            one = copied(images[:1].clone(memory_format=torch.channels_last))
    except Exception as error:  # noqa: BLE001 - as above
        return _raised(error)
    if not is_close(answers.detach(), expected) or not is_close(one, alone):
        return Reason(
            "blocks in place of convolutions, or channels-last images, change its answers"
        )
    if one.shape != expected[:1].shape:
        return Reason("one image alone has an answer of other axes")
    return None


def _odd_layer(module: nn.Module) -> str:
    for name, layer in module.named_modules():
        if isinstance(layer, _ConvNd) and type(layer).__module__ != _ConvNd.__module__:
            return f"layer {name} is a {type(layer).__name__}, a kind of convolution of its own"
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode != "zeros":
            return f"layer {name} pads by {layer.padding_mode!r}"
        if isinstance(layer, _LAYERS) and (layer._forward_pre_hooks or layer._forward_hooks):
            return f"layer {name} has forward hooks"
    return ""


def _hidden_layer(module: nn.Module, images: Tensor) -> str:
    return _watched(module, images).found


def under_autocast(module: nn.Module, images: Float[Tensor, "n c h w"]) -> str:
    """Return which layer's code turns on torch.autocast itself, in words; empty where none does."""
    return _watched(module, images).cast


def _watched(module: nn.Module, images: Tensor) -> _Watch:
    with running_modules(module) as running:
        watch = _Watch(module, running)
        with torch.no_grad(), watch:
            module(images[:1].clone())
    return watch


class _Watch(TorchFunctionMode):
    """Sees weights of stock layers taken by other code, layers that are no modules, autocast."""

    def __init__(self, module: nn.Module, running: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.found = self.cast = ""  # in words, the first that looks past a layer; under autocast
        self._running = running
        self._owners = {
            id(weight): (name, layer)
            for name, layer in module.named_modules()
            if isinstance(layer, _LAYERS)
            for weight in layer.parameters(recurse=False)
        }

    def __torch_function__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        """Run ``function``; remember the first that looks into, or goes past, a layer."""
        where, layer = self._running[-1] if self._running else ("", None)
        if not self.cast and torch.is_autocast_enabled("cpu"):
            self.cast = f"layer {where}" if where else "its forward"
        given = [*inputs, *(named or {}).values()]
        for tensor in given if not self.found else ():
            owner, owning = self._owners.get(id(tensor), ("", layer))
            if owning is not layer:
                self.found = f"its code reads the weights of layer {owner}"
        called = getattr(function, "__name__", "")
        if not self.found and called in _FUNCTIONS and not isinstance(layer, _LAYERS):
            self.found = f"{where or 'its forward'} calls {called} itself"
        return function(*inputs, **(named or {}))


@contextmanager
def _ran(module: nn.Module) -> Iterator[list[str]]:
    """Note the names of the modules that run; while a copy does, these are none of its own."""
    ran: list[str] = []

    def noting(name: str) -> Any:
        return lambda _layer, _inputs: ran.append(name)

    handles = [one.register_forward_pre_hook(noting(name)) for name, one in module.named_modules()]
    with hooked(handles):
        yield ran


@contextmanager
def running_modules(module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Keep the modules that are running, innermost last, with their names."""
    running: list[tuple[str, nn.Module]] = []

    def enter(name: str) -> Any:
        return lambda layer, _inputs: running.append((name, layer))

    def leave(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
        running.pop()

    handles = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(enter(name)))
        handles.append(layer.register_forward_hook(leave))
    with hooked(handles):
        yield running


def _raised(error: Exception) -> Reason:
    line = first_line(error)
    return Reason(f"used as the stages do, it raises {type(error).__name__}", error=line)
