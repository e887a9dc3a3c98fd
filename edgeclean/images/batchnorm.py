"""BatchNorm statistics: the distance of images from them, and their re-estimation."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.networks.autocast import device_of, exact_float32, mixed_precision
from edgeclean.networks.batching import images_at_once
from edgeclean.networks.features import Hooks, hooked

EPSILON = 1e-6  # added to variances before a root or a quotient


def batchnorm_layers(module: nn.Module) -> list[nn.BatchNorm2d]:
    """Return every BatchNorm2d that holds running statistics, in registration order."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None
    ]


@torch.no_grad()
def running_batchnorm_layers(
    module: nn.Module, pixels: Float[Tensor, "n c h w"]
) -> list[nn.BatchNorm2d]:
    """Return those of `batchnorm_layers` that a pass over ``pixels`` runs.

    An auxiliary head that only training runs (GoogLeNet, Inception) is not among them: its
    statistics constrain no image, and no image reaches it.
    """
    ran: set[nn.Module] = set()

    def note(layer: nn.Module, _inputs: Any) -> None:
        ran.add(layer)

    layers = batchnorm_layers(module)
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    with hooked(handles):
        module(pixels.to(device_of(module)))
    return [layer for layer in layers if layer in ran]


class StatisticsDistance(Hooks):
    """A context that compares the *inputs* of every BatchNorm with its running statistics.

    Inputs, because pairing the n-th convolution's output with the n-th BatchNorm, as the public
    ZeroQ code does, is wrong for pre-activation networks and for shortcuts.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = batchnorm_layers(module)
        self._inputs: dict[nn.Module, Tensor] = {}
        self.handles = [
            layer.register_forward_pre_hook(self._keep, with_kwargs=True) for layer in self._layers
        ]

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        self._inputs[layer] = inputs[0] if inputs else named["input"]

    def distance(self) -> Float[Tensor, ""]:
        """Return the squared distances of means and deviations, averaged over layers and channels.

        Both are divided by the running variance, so every layer and channel weighs the same
        whatever its scale (ZeroQ, Cai et al. 2020, sums them undivided). Layers that the passes
        since the last call did not run are left out.
        """
        total = torch.zeros(())
        ran = [layer for layer in self._layers if layer in self._inputs]
        for layer in ran:
            mean, variance = BatchMoments.apply(self._inputs[layer])  # type: ignore[no-untyped-call]
            expected_mean, expected_variance = layer.running_mean, layer.running_var
            assert isinstance(expected_mean, Tensor)  # noqa: S101 - batchnorm_layers chose them
            assert isinstance(expected_variance, Tensor)  # noqa: S101
            scale = expected_variance + EPSILON
            deviation = (variance + EPSILON).sqrt() - scale.sqrt()
            layer_distance = (
                mean - layer.running_mean
            ).square() / scale + deviation.square() / scale
            total = total.to(layer_distance.device) + layer_distance.mean()
        self._inputs.clear()
        return total / max(1, len(ran))


@torch.no_grad()
def statistics_distance(
    pixel_module: nn.Module, pixels: Float[Tensor, "n c h w"], most: int = 256
) -> float | None:
    """Return the `StatisticsDistance` of some images as one batch; None without BatchNorm.

    Args:
        pixel_module: takes pixels.
        pixels: the first ``most`` of them, of large images as many as fit, are shown.
        most: the largest batch.
    """
    if not batchnorm_layers(pixel_module):
        return None
    fitting = min(most, images_at_once(pixels.shape[1:], pixel_module))
    with StatisticsDistance(pixel_module) as statistics, exact_float32():
        pixel_module(pixels[:fitting].to(device_of(pixel_module)))
        return float(statistics.distance())


class BatchMoments(torch.autograd.Function):
    """The mean and biased variance of a batch per channel, by BatchNorm's own reduction.

    Plain ``x.float().mean`` and ``var`` copy each activation several times and halve the speed of
    inversion in bfloat16; this reads it once, and once more for the gradient,
    d var / dx = 2 (x - mean) / n.
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance over batch, rows and columns, in float32."""
        # With running statistics in float32 the kernel sums and answers in float32, whatever the
        # activations are in; momentum 0 leaves them as they are.
        zeros = torch.zeros(
            activations.shape[1],
            dtype=torch.promote_types(activations.dtype, torch.float32),
            device=activations.device,
        )
        mean, variance = torch.ops.aten.batch_norm_update_stats(
            activations, zeros, zeros.clone(), 0.0
        )
        ctx.save_for_backward(activations, mean)
        ctx.count = activations.numel() / activations.shape[1]
        return mean, variance

    @staticmethod
    def backward(ctx: Any, mean_gradient: Tensor, variance_gradient: Tensor) -> Tensor:
        """Return the gradient of the activations, one affine map per channel."""
        activations, mean = ctx.saved_tensors
        slope = 2 * variance_gradient / ctx.count
        # BatchNorm's kernel is the one affine map that is a single pass in bfloat16. Some releases
        # of PyTorch refuse an eps of 0, so the deviation of 1 is made of a variance of 0.
        return functional.batch_norm(
            activations, mean, torch.zeros_like(mean), slope, mean_gradient / ctx.count, eps=1.0
        )


@torch.no_grad()
def reestimate_batchnorm_(
    pixel_module: nn.Module, pixels: Float[Tensor, "n c h w"], batch_size: int = 128
) -> None:
    """Set every running statistic, in place, to its average over ``pixels``.

    Layers that evaluation does not run keep theirs. The module is left in evaluation mode.
    """
    if not batchnorm_layers(pixel_module):
        return
    pixel_module.eval()
    layers = running_batchnorm_layers(pixel_module, pixels[:1])
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # None: a cumulative average over all batches
        layer.train()
    # A last batch much smaller than the others would weigh as much as they do.
    chunks = max(1, round(len(pixels) / batch_size))
    device = device_of(pixel_module)
    with mixed_precision(device):
        for batch in pixels.chunk(chunks):
            pixel_module(batch.to(device).contiguous(memory_format=torch.channels_last))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
