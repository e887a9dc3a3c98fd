"""The number of images at once, bounded by the memory that a backward pass keeps for them.

Networks for 32x32 images keep about a megabyte per image, those for 224x224 tens of them; without a
bound, a batch that is nothing for the first takes the whole machine, or the whole GPU, for the
second. The bound is one number for every machine, and not what happens to be free, so that two runs
give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeclean.networks.autocast import device_of, mixed_precision

KEPT_BYTES = 2 * 2**30  # of one backward pass; about as much is worked with beside it
# Of one image and class: the answer, its target, its log, their product, and as many gradients.
ANSWER_BYTES = 8 * 4
# Of one part of a batch on a processor: a map beyond 32 MB is new memory from the system at every
# pass, so that many large images at once take longer each than few.
PART_BYTES = 2**29
# Of images in one pass that keeps nothing: 256 of 64x64, whose largest maps are some 20 times that.
SHOWN_NUMBERS = 256 * 3 * 64 * 64


def images_at_once(shape: Sequence[int], *modules: nn.Module) -> int:
    """Return the most images of ``shape`` [c, h, w] in one forward and backward pass; at least 1.

    Args:
        shape: channels, height and width of one image.
        modules: functions of images, which all see each of them; run on one image and on two.
    """
    return _fitting(KEPT_BYTES, shape, modules)


def answers_at_once(classes: int) -> int:
    """Return the most images whose answers, and what a loss keeps of them, fit; at least 1.

    It is beside `images_at_once`, which sees what the networks keep, and binds only where there
    are many classes.
    """
    return max(1, KEPT_BYTES // (classes * ANSWER_BYTES))


def images_in_a_part(shape: Sequence[int], *modules: nn.Module) -> int:
    """Return the most images of ``shape`` in one part of a batch whose parts' gradients add up.

    On a GPU as many as `images_at_once`; on a processor fewer, which are faster.
    """
    on_processor = all(device_of(one).type == "cpu" for one in modules)
    return _fitting(min(PART_BYTES, KEPT_BYTES) if on_processor else KEPT_BYTES, shape, modules)


def images_shown(shape: Sequence[int], most: int = 256) -> int:
    """Return the images of ``shape`` [c, h, w] in one pass without a gradient, at most ``most``."""
    return max(1, min(most, SHOWN_NUMBERS // math.prod(shape)))


def _fitting(kept: int, shape: Sequence[int], modules: Sequence[nn.Module]) -> int:
    an_image = sum(_kept_bytes(one, (2, *shape)) - _kept_bytes(one, (1, *shape)) for one in modules)
    return max(1, kept // max(1, an_image))


def _kept_bytes(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the bytes that autograd keeps for a gradient of images of ``shape`` [n, c, h, w].

    Several layers may keep one tensor, and views of it: storages are counted, once each.
    """
    device = device_of(module)
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address is unique only while its storage lives

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    images = torch.full(shape, 0.5, device=device).to(memory_format=torch.channels_last)
    listening = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    # Callers that want no gradient ask as well: what they hold at a time is less than this.
    try:
        with torch.enable_grad(), listening, mixed_precision(device):
            module(images.requires_grad_())
    finally:
        # The tensors' graph holds `keep`, and no garbage collection sees that cycle.
        alive.clear()
    return sum(kept.values())
