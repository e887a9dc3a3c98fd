"""Every architecture of the table, with its images, its classes and what it is said to show."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PACKAGE = "benchmarks.architectures"
SEED = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of the table.

    Attributes:
        builder: a function of this package, as ``family:function``.
        input_shape: channels, height and width of its images.
        classes: columns of its logits; 2 for a network with one logit.
        trained: whether it is trained with a planted backdoor, which takes seconds; the others
            keep their random weights.
    """

    builder: str
    input_shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    trained: bool = True

    @property
    def name(self) -> str:
        """Return the function's name, in words joined by hyphens."""
        return self.builder.partition(":")[2].replace("_", "-")

    @property
    def arch(self) -> str:
        """Return what ``--arch`` is given."""
        return f"{PACKAGE}.{self.builder}"

    def build(self) -> nn.Module:
        """Return a new network, always with the same random weights; lazy layers are made whole."""
        family, _, function = self.builder.partition(":")
        builder = getattr(importlib.import_module(f"{PACKAGE}.{family}"), function)
        offered = {"classes": self.classes, "input_shape": self.input_shape}
        taken = inspect.signature(builder).parameters
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            network = builder(**{key: offered[key] for key in taken})
            if any(nn.parameter.is_lazy(one) for one in network.parameters()):
                network.eval()(torch.zeros(2, *self.input_shape))
        assert isinstance(network, nn.Module)
        return network


def logits_of(answer: object) -> Tensor:
    """Return the logits [n, classes] out of what a network of the table answers in evaluation mode.

    Of a tuple it is the first member, of a dictionary the one called so; [n, classes, 1, 1] loses
    its last two axes.
    """
    if isinstance(answer, dict):
        answer = answer["logits"]
    if isinstance(answer, tuple):
        answer = answer[0]
    assert isinstance(answer, Tensor)
    if answer.shape[1] == 1:  # one logit: of class 1, beside zero for class 0
        return torch.cat((torch.zeros_like(answer), answer), 1)
    return answer.flatten(1)


def _rows(
    family: str,
    names: str,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    *,
    trained: bool = True,
) -> list[Architecture]:
    return [
        Architecture(f"{family}:{name}", input_shape, classes, trained) for name in names.split()
    ]


_ALL = [
    *_rows("plain", "lenet", (1, 28, 28)),
    *_rows("plain", "lenet_tanh", (1, 32, 32)),
    *_rows("plain", "alexnet", (3, 64, 64), 20),
    *_rows("plain", "vgg vgg_bn vgg_view all_convolutional network_in_network maxout light_cnn"),
    *_rows("residual", "resnet preact_resnet wide_resnet se_resnet res2net resnet_option_a"),
    *_rows("residual", "resnext regnet nf_resnet stochastic_depth_resnet blurpool_resnet resnest"),
    *_rows("residual", "resnet_bottleneck", (3, 224, 224), 1000, trained=False),
    *_rows("residual", "resnet_d", (3, 96, 96), 100, trained=False),
    *_rows("aggregation", "densenet cspnet vovnet dla hrnet yolo_cls sppf spp_net"),
    *_rows("inception", "googlenet", (3, 64, 64)),
    *_rows("inception", "inception_v3 inception_resnet xception"),
    *_rows("mobile", "mobilenet_v1 mobilenet_v2 mobilenet_v3 mobilenet_v4 mnasnet efficientnet"),
    *_rows("mobile", "efficientnet_v2 mixnet"),
    *_rows("mobile", "efficientnet_lite", (3, 33, 33)),
    *_rows("mobile", "mcunet", (3, 48, 48), 2),
    *_rows("mobile", "ds_cnn", (1, 49, 10), 12),
    *_rows(
        "light", "shufflenet_v1 shufflenet_v2 ghostnet fasternet convmixer fractalnet octave_net"
    ),
    *_rows("light", "squeezenet", (3, 64, 64), 5),
    *_rows("reparametrised", "repvgg repvgg_deployed mobileone mobileone_deployed acnet"),
    *_rows("modern", "convnext convnext_v2 edgenext poolformer mobilevit hybrid_vit vit mlp_mixer"),
    *_rows("modern", "swin"),
    *_rows("attention", "cbam eca coordinate_attention non_local global_context sknet simam"),
    *_rows("attention", "attention_pool gem_cosine spatial_transformer"),
    *_rows("normalised", "groupnorm instancenorm frozen_batchnorm weight_standardised"),
    *_rows("normalised", "weight_normed weight_normed_by_hooks spectral_normed reflect_padded"),
    *_rows("normalised", "replicate_padded filter_response activated_batchnorm plain_batchnorm"),
    *_rows("normalised", "batch_statistics"),
    *_rows("normalised", "same_padded", (3, 30, 34)),
    *_rows("signals", "signal_2d signal_conv1d", (3, 1, 128), 5),
    *_rows("signals", "spectrogram tc_resnet", (1, 40, 98), 12),
    *_rows("signals", "crnn", (1, 32, 64)),
    *_rows("signals", "non_square", (1, 32, 100), 26),
    *_rows("signals", "grey_resnet", (1, 28, 28)),
    *_rows("signals", "multispectral", (13, 32, 32)),
    *_rows("forms", "tuple_output dict_output log_softmax softmax keyword_calls lazy_layers"),
    *_rows("forms", "single_logit", (3, 32, 32), 2),
    *_rows("forms", "weight_reads functional_only shared_layers tied_weights inner_normalisation"),
    *_rows("forms", "ensemble mirrored squeezing unshuffled transposed activations glu"),
    *_rows("forms", "named_sequential cropped view_flatten"),
]
TABLE = {one.name: one for one in _ALL}
assert len(TABLE) == len(_ALL), "two architectures have one name"
