"""A network that brings its images to another size before its first layer.

It takes the images that it took before, so whoever runs it need not know. Its layers keep the names
that they have without it: what stands in front has no weights and is no layer.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Size = tuple[int, int]
RESIZE = "Resize"  # the operator in ONNX


class Resize(nn.Module):
    """Bring images to a size, bilinearly, without smoothing them first.

    ONNX writes it as one Resize (linear, half_pixel), which the edge runtimes have; smoothing came
    in with opset 18 and most of them lack it.

    Attributes:
        size: height and width.
    """

    def __init__(self, size: Size) -> None:
        """Store the size."""
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
        """Return the images at the size."""
        resized: Tensor = functional.interpolate(
            images, size=self.size, mode="bilinear", align_corners=False
        )
        return resized

    def extra_repr(self) -> str:
        """Return the size, which tells two such networks apart."""
        return f"size={self.size}"


class Resized(nn.Module):
    """A network with a `Resize` in front of it.

    Attributes:
        resize: what comes first.
        network: the network itself.
    """

    def __init__(self, network: nn.Module, size: Size) -> None:
        """Share the network; its training mode is this one's."""
        super().__init__()
        self.resize = Resize(size)
        self.network = network
        self.train(network.training)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the network's outputs for images of any size."""
        outputs: Tensor = self.network(self.resize(images))
        return outputs


def inside(module: nn.Module) -> nn.Module:
    """Return the network that a `Resized` holds, whose layers bear the names; else the module."""
    return module.network if isinstance(module, Resized) else module


def like(module: nn.Module, network: nn.Module) -> nn.Module:
    """Return a network as ``module`` has its own: behind the same resizing, if there is any."""
    return Resized(network, module.resize.size) if isinstance(module, Resized) else network
