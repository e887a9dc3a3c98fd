"""Reports, tensors and networks come back as they were kept, and nothing else is built."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from kept_things import small_network
from report_evidence import scan_report
from small_checkpoint import spec
from torch import Tensor, nn

from edgeclean.networks.state import PurifiedNetwork, SyntheticImages
from edgeclean.runner import stage_key
from edgeclean.stage_results import from_bytes, to_bytes


def images() -> SyntheticImages:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return SyntheticImages(
        pixels=pixels.contiguous(memory_format=torch.channels_last),
        labels=torch.tensor([1, 0]),
        origin="a test",
    )


def test_tensors_come_back_with_their_numbers_and_strides() -> None:
    before = images()
    after = from_bytes(to_bytes(before))
    assert torch.equal(after.pixels, before.pixels)
    assert after.pixels.stride() == before.pixels.stride()
    assert torch.equal(after.labels, before.labels)
    assert after.origin == before.origin


@pytest.mark.parametrize("shape", [(8, 1, 3, 3), (8, 4, 1, 1), (1, 4, 3, 3), (4, 1, 1, 1)])
def test_what_is_kept_has_the_key_of_what_was_made(shape: tuple[int, ...]) -> None:
    """Of depthwise and 1x1 kernels, and grey images, either format is contiguous."""
    kernel = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(nn.Conv2d(shape[1], shape[0], shape[2:], bias=False))
    module[0].weight.data = kernel.to(memory_format=torch.channels_last)
    network = PurifiedNetwork(
        module=module.eval(),
        spec=replace(spec(), input_shape=(shape[1], 4, 4)),
        source_sha256="ab" * 32,
    )
    pixels = kernel.to(memory_format=torch.channels_last)
    images = SyntheticImages(pixels=pixels, labels=torch.zeros(shape[0]).long(), origin="a test")
    for made in (network, images):
        kept = from_bytes(to_bytes(made), network)
        assert stage_key("next", {"given": kept}) == stage_key("next", {"given": made})


def test_tensors_come_back_to_the_device_that_they_lay_on() -> None:
    placed: list[tuple[tuple[int, ...], str]] = []

    def place(tensor: Tensor, device: str) -> Tensor:
        placed.append((tuple(tensor.shape), device))
        return tensor + 1

    before = images()
    contents = to_bytes(before)
    after = from_bytes(contents, place=place)
    assert placed == [((2, 3, 4, 4), "cpu"), ((2,), "cpu")]
    assert torch.equal(after.pixels, before.pixels + 1), "what was placed is what comes back"
    there = contents.replace(b'\\"device\\":\\"cpu\\"', b'\\"device\\":\\"gpu\\"')
    assert there != contents
    placed.clear()
    from_bytes(there, place=place)
    assert [device for _, device in placed] == ["gpu", "gpu"]
    with pytest.raises(RuntimeError):  # no such device here: the stage runs again
        from_bytes(there)


def test_a_report_comes_back_whole() -> None:
    before = scan_report()
    after = from_bytes(to_bytes(before))
    assert type(after) is type(before)
    assert after.summary() == before.summary()
    assert after.searches == before.searches
    for one, other in zip(after.suspects, before.suspects, strict=True):
        assert all(map(torch.equal, one.trigger.preview(), other.trigger.preview()))


@dataclasses.dataclass(frozen=True)
class Stranger:
    """Not among what may be kept."""

    size: int = 1


def test_only_listed_classes_are_written_or_built() -> None:
    with pytest.raises(TypeError, match="a Stranger cannot be kept"):
        to_bytes(Stranger())
    tree = '{"class": "Popen", "fields": {}}'
    with pytest.raises(KeyError):
        from_bytes(bytes(safetensors.torch.save({}, metadata={"tree": tree})))


def test_a_network_comes_back_in_the_layers_of_another() -> None:
    before = small_network(PurifiedNetwork)
    before.module[0].weight.data = before.module[0].weight.data.contiguous(  # type: ignore[index]
        memory_format=torch.channels_last
    )
    skeleton = small_network()
    kept = {name: tensor.clone() for name, tensor in skeleton.module.state_dict().items()}
    after = from_bytes(to_bytes(before), skeleton)
    assert type(after) is PurifiedNetwork
    for name, tensor in before.module.state_dict().items():
        again = after.module.state_dict()[name]
        assert torch.equal(again, tensor)
        assert again.stride() == tensor.stride()
    for name, tensor in skeleton.module.state_dict().items():
        assert torch.equal(tensor, kept[name]), "the skeleton was changed"
    with pytest.raises(ValueError, match="is not of these layers"):
        from_bytes(to_bytes(before), small_network(width=4))
    with pytest.raises(ValueError, match="needs one of the same layers"):
        from_bytes(to_bytes(before))
