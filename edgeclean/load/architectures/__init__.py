"""The table of networks whose code we trust: a checkpoint brings weights only.

A name picks a builder; the builder picks among the published naming variants of that network by
the checkpoint's keys (each module's docstring lists them). Every network is made of stock
``torch.nn`` modules, registered in the order in which they run, and takes normalised images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from torch import nn

from edgeclean.errors import UsageError
from edgeclean.files.nearest import nearest_or_known
from edgeclean.load.architectures.libraries import build_of_library, is_of_library
from edgeclean.load.architectures.mobilenet import mobilenet_v2
from edgeclean.load.architectures.named_code import build_named
from edgeclean.load.architectures.residual import (
    cifar_resnet,
    preact_resnet18,
    resnet,
    wide_resnet,
)
from edgeclean.load.architectures.vgg import cifar_vgg_bn, vgg_bn
from edgeclean.networks.state import ModelSpec

Builder = Callable[[ModelSpec, Collection[str]], nn.Module]

_TABLE: dict[str, Builder] = {
    **{f"resnet{depth}": cifar_resnet(depth) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}": resnet(depth, imagenet_stem=True) for depth in (18, 34, 50)},
    **{f"cifar-resnet{depth}": resnet(depth, imagenet_stem=False) for depth in (18, 34, 50)},
    "preact-resnet18": preact_resnet18,
    "wide-resnet-16-1": wide_resnet(16, 1),
    "wide-resnet-28-10": wide_resnet(28, 10),
    **{f"vgg{depth}-bn": vgg_bn(depth) for depth in (11, 13, 16, 19)},
    **{f"cifar-vgg{depth}-bn": cifar_vgg_bn(depth) for depth in (11, 13, 16, 19)},
    "mobilenet-v2": mobilenet_v2(small_images=False),
    "cifar-mobilenet-v2": mobilenet_v2(small_images=True),
}


def list_architectures() -> tuple[str, ...]:
    """Return the names of the built-in table, sorted."""
    return tuple(sorted(_TABLE))


def build_architecture(
    name: str, spec: ModelSpec, keys: Collection[str], *, code_folder: Path | None = None
) -> nn.Module:
    """Build a freshly initialised network by its name.

    Args:
        name: a name of the table, of a library (`libraries`), or code that the user names (see
            `named_code`; it is executed).
        spec: gives the input channels and classes.
        keys: the names in the checkpoint's state dict; they choose the naming variant.
        code_folder: the folder that a relative ``file.py:callable`` is relative to.

    Raises:
        UsageError: the table has no such name, or the user's code failed.
    """
    if is_of_library(name):
        return build_of_library(name, spec)
    if ":" in name:
        return build_named(name, spec, code_folder)
    if name not in _TABLE:
        every = f"known: {', '.join(list_architectures())}"
        hint = nearest_or_known(name, _TABLE, otherwise=every)
        raise UsageError(
            f"--arch {name!r} is not in the table ({hint}); name code of "
            "your own by package.module:callable or file.py:callable, or timm:NAME"
        )
    return _TABLE[name](spec, keys)
