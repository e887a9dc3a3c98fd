"""A network whose answer to an image hangs on the others of its batch is no network of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_checkpoint import LIMITS, SPEC
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.onnx.importer import check_batches
from edgeclean.load.trial_images import trial_images
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import ModelSpec

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 96, 96), (3, 128, 128)]
PLACES = ("first", "middle")
CODE = """
import torch
from torch import nn
from torch.nn import functional
class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.a, self.norm = nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, classes)
    def first(self, x):
        return FIRST
    def middle(self, x):
        return MIDDLE
    def forward(self, images):
        planes = self.middle(self.norm(self.a(self.first(images))).relu())
        return RETURNED
def tiny(classes):
    return Net(classes, CHANNELS)
"""
RETURNED = "self.head(self.b(planes).relu().mean((2, 3)))"
MIXED = {
    "maximum": "x / x.max()",
    "mean": "x - x.mean()",
    "norm": "10 * x / x.norm()",
    "softmax": "x.softmax(0)",
    "sums": "x.cumsum(0)",
    "maxima": "x.cummax(0)[0]",
    "sorted": "x.sort(0)[0]",
    "rolled": "x.roll(1, 0)",
    "flipped": "x.flip(0)",
    "range": "(x - x.min()) / (x.max() - x.min() + 1e-5)",
    "deviation": "x / (x.std() + 1e-5)",
    "attention": "((x.flatten(1) @ x.flatten(1).T) / x[0].numel() ** 0.5)"
    ".softmax(1).matmul(x.flatten(1)).view_as(x)",
    "the first": "x + x[:1]",
    "the last": "x + x[-1:]",
    "quantile": "x - x.flatten().quantile(0.9)",
    "batch statistics": "nn.BatchNorm2d(x.shape[1], affine=False, track_running_stats=False)(x)",
}
AXES = "(1, 2, 3), keepdim=True"
FOR_EACH = {
    "maximum": f"x / x.amax({AXES}).clamp(min=1e-3)",
    "mean": f"x - x.mean({AXES})",
    "norm": "10 * x / (x.flatten(1).norm(dim=1)[:, None, None, None] + 1e-5)",
    "softmax": "x.softmax(1)",
    "sums": "x.cumsum(2) * 0.1",
    "sorted": "x.sort(1)[0]",
    "rolled": "x.roll(1, 2)",
    "flipped": "x.flip(3)",
    "range": f"(x - x.amin({AXES})) / (x.amax({AXES}) - x.amin({AXES}) + 1e-5)",
    "deviation": "(x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-5)",
    "attention": "x.flatten(2).transpose(1, 2).matmul((x.flatten(2) @ x.flatten(2).transpose(1, 2)"
    " / x[0, 0].numel()).softmax(2)).transpose(1, 2).reshape(x.shape)",
    "quantile": "x - x.flatten(1).quantile(0.9, 1)[:, None, None, None]",
    "norm of each image": "functional.instance_norm(x)",
}


def code(function: str, place: str, shape: tuple[int, ...], returned: str = RETURNED) -> str:
    functions = dict.fromkeys(PLACES, "x") | {place: function}
    return (
        CODE.replace("FIRST", functions["first"])
        .replace("MIDDLE", functions["middle"])
        .replace("RETURNED", returned)
        .replace("CHANNELS", str(shape[0]))
    )


def made(text: str) -> Any:
    names: dict[str, Any] = {}
    exec(text, names)  # noqa: S102 - the text above, as load_checkpoint imports it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return names["tiny"](SPEC.classes).eval()


def spec_of(shape: tuple[int, int, int]) -> ModelSpec:
    halves, quarters = (0.5,) * shape[0], (0.25,) * shape[0]
    return dataclasses.replace(SPEC, input_shape=shape, mean=halves, std=quarters)


def loaded(text: str, shape: tuple[int, int, int], folder: Path) -> nn.Module:
    (folder / "net.py").write_text(text, encoding="utf-8")
    weights = safetensors.torch.save(made(text).state_dict())
    (folder / "a.safetensors").write_bytes(weights)
    path = folder / "a.safetensors"
    return load_checkpoint(path, spec_of(shape), limits=LIMITS, code_folder=folder).module


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", sorted(MIXED))
def test_code_that_mixes_the_images_of_a_batch_is_refused(
    name: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    for place in PLACES:
        with pytest.raises(InputRejectedError, match="hangs on the others of its batch"):
            loaded(code(MIXED[name], place, shape), shape, tmp_path)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[-1]])
@pytest.mark.parametrize("name", sorted(FOR_EACH))
def test_what_is_done_to_each_image_alone_is_taken_and_kept(
    name: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    images = normalize(
        torch.rand(3, *shape) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1), spec_of(shape)
    )
    for place in PLACES:
        text = code(FOR_EACH[name], place, shape)
        module, original = loaded(text, shape, tmp_path), made(text)
        with torch.no_grad():
            torch.testing.assert_close(module(images), original(images))
            alone = torch.cat([module(one[None]) for one in images])
            torch.testing.assert_close(alone, original(images))


@pytest.mark.parametrize("returned", [f"(planes, {RETURNED})", f"{RETURNED}[:, :1]"])
def test_a_network_that_is_written_out_may_not_mix_them_either(
    returned: str, tmp_path: Path
) -> None:
    """Its answer is one of several, or a logit for two classes."""
    text = code(MIXED["mean"], "middle", SHAPES[1], returned)
    with pytest.raises(InputRejectedError, match="hangs on the others of its batch"):
        loaded(text, SHAPES[1], tmp_path)


class Shifted(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (images.softmax(2) - images.softmax(2).mean(0)).flatten(1)[:, :4]
        return logits


def test_an_onnx_graph_is_asked_with_images_of_different_textures_too() -> None:
    """Of two ramps, what a softmax makes is the same."""
    with pytest.raises(InputRejectedError, match="mixes the images of a batch"):
        check_batches(Shifted().eval(), (3, 8, 8))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 128), (3, 7, 5), *SHAPES])
def test_the_images_differ_and_each_is_of_pixels(shape: tuple[int, int, int]) -> None:
    images = trial_images(shape, 4)
    assert images.shape == (4, *shape)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert torch.equal(images, trial_images(shape, 4))
    if images[0].numel() > 100:
        assert bool((images.flatten(1).std(1) > 0.01).all())
        means = images.flatten(1).mean(1)
        assert bool((means[:, None] - means).abs().add(torch.eye(4)).min() > 0.01)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_answers_that_rounding_loses_are_told_as_that(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    """What is left of large numbers is their rounding, which the size of a batch changes."""
    size = "planes[0].numel()"
    weight = f"torch.arange({size} * self.head.out_features).sin().to(planes).view(-1, {size})"
    product = f"functional.linear(VALUES.flatten(1) + 3e4, {weight})"
    large = " - ".join(product.replace("VALUES", one) for one in ("planes", "0 * planes[:1]"))
    with pytest.raises(InputRejectedError, match="lost in rounding: in float32"):
        loaded(code("x", "first", shape, large), shape, tmp_path)
    with pytest.raises(InputRejectedError, match="lost in rounding: in float32"):
        check_batches(made(code("x", "first", shape, large)), shape)
