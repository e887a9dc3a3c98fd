"""What the user's own code does when it is made, loaded and set to evaluation is done in order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import SPEC, saved
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.limits import LoadLimits
from edgeclean.networks.state import LoadedNetwork

IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(5))
BODY = """
import random
import numpy as np
import torch
from torch import nn
from torch.nn import functional
LAYERS
class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(16, classes)
        MORE
    def forward(self, images):
        planes = functional.relu(self.norm(self.conv(images)))
        return self.head(USED.flatten(1))
def tiny(classes):
    return Net(classes)
"""


def code(more: str = "pass", used: str = "planes", layers: str = "") -> str:
    return BODY.replace("LAYERS", layers).replace("MORE", more).replace("USED", used)


def made(text: str) -> Any:
    names: dict[str, Any] = {}
    exec(text, names)  # noqa: S102 - the text above, as load_checkpoint imports it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return names["tiny"](2)


def loaded(contents: bytes, text: str, folder: Path) -> LoadedNetwork:
    (folder / "net.py").write_text(text, encoding="utf-8")
    (folder / "a.pth").write_bytes(contents)
    return load_checkpoint(folder / "a.pth", SPEC, limits=LoadLimits(), code_folder=folder)


def answers(module: nn.Module) -> Tensor:
    with torch.no_grad():
        got: Tensor = module.eval()(IMAGES)
    return got


# Since version 2 its numbers are logarithms; what older files hold is converted.
VERSIONED = """
class Scale(nn.Module):
    _version = 2
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.full((1, 4, 1, 1), 0.5))
    def forward(self, planes):
        return planes * self.log.exp()
    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version", 1) < 2:
            state[prefix + "log"] = state[prefix + "log"].log()
        super()._load_from_state_dict(state, prefix, metadata, *others)
"""


def test_a_layer_converts_what_its_older_version_wrote_and_nothing_else(tmp_path: Path) -> None:
    text = code("self.scale = Scale()", "self.scale(planes)", VERSIONED)
    module = made(text)
    new = module.state_dict()
    old = module.state_dict()
    old["scale.log"] = old["scale.log"].exp()
    old._metadata["scale"]["version"] = 1
    plain = dict(new)  # as safetensors has it: nothing is said of a version
    expected = answers(module)
    for tree in (new, old, plain, {"model": nn.DataParallel(module).state_dict()}):
        assert torch.equal(answers(loaded(saved(tree), text, tmp_path).module), expected)


def test_what_the_codes_own_loading_raises_is_one_line(tmp_path: Path) -> None:
    text = code(layers="", more="self.register_load_state_dict_pre_hook(self.refuse)").replace(
        "    def forward",
        "    def refuse(self, *_):\n        raise ValueError('too\\nold')\n    def forward",
    )
    with pytest.raises(
        InputRejectedError, match=r"does not take these weights \(ValueError: too\)"
    ):
        loaded(saved(made(text).state_dict()), text, tmp_path)


MERGED = """
class Adapted(nn.Linear):  # as loralib's: training keeps the two apart, evaluation adds them up
    def __init__(self):
        super().__init__(16, 16)
        self.a, self.b = nn.Parameter(torch.eye(16)), nn.Parameter(torch.eye(16))
        self.merged = False
    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (self.b @ self.a) * (-1 if mode else 1)
            self.merged = not mode
    def forward(self, rows):
        weight = self.weight if self.merged else self.weight + self.b @ self.a
        return functional.linear(rows, weight, self.bias)
"""
FUSED = """
class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
    def train(self, mode=True):
        super().train(mode)
        if not mode and hasattr(self, "one"):
            self.both = nn.Linear(16, 16)
            self.both.weight.data = self.one.weight.data + self.two.weight.data
            self.both.bias.data = self.one.bias.data + self.two.bias.data
            del self.one, self.two
        return self
    def forward(self, rows):
        return self.one(rows) + self.two(rows) if hasattr(self, "one") else self.both(rows)
"""


@pytest.mark.parametrize(("layers", "name"), [(MERGED, "Adapted"), (FUSED, "Fused")])
def test_what_evaluation_does_to_weights_it_does_to_the_files(
    layers: str, name: str, tmp_path: Path
) -> None:
    text = code(f"self.own = {name}()", "self.own(planes.flatten(1))", layers)
    module = made(text)
    while_training = saved(module.state_dict())
    expected = answers(module)
    got = answers(loaded(while_training, text, tmp_path).module)
    torch.testing.assert_close(got, expected)


def test_weights_that_only_evaluation_has_fit_as_well(tmp_path: Path) -> None:
    text = code("self.own = Fused()", "self.own(planes.flatten(1))", FUSED)
    module = made(text)
    expected = answers(module)  # sets evaluation, so that the two are one from here on
    assert "own.both.weight" in module.state_dict()
    assert torch.equal(answers(loaded(saved(module.state_dict()), text, tmp_path).module), expected)


DRAWN = {
    "an order of PyTorch's": ("self.own = torch.randperm(4).tolist()", "planes[:, self.own]"),
    "an order of NumPy's": ("self.own = np.random.permutation(4)", "planes[:, self.own]"),
    "an order of Python's": ("self.own = random.sample(range(4), 4)", "planes[:, self.own]"),
    "a mask in a list": ("self.own = [torch.rand(4, 1, 1)]", "(planes * self.own[0])"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_at_random_and_no_tensor_of_the_network_is_refused(
    name: str, tmp_path: Path
) -> None:
    text = code(*DRAWN[name])
    contents = saved(made(text).state_dict())
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state()
    with pytest.raises(InputRejectedError, match="are drawn at random when it is made"):
        loaded(contents, text, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    seeded = text.replace(
        "        self.own",
        "        torch.manual_seed(0); np.random.seed(0); random.seed(0)\n        self.own",
    )
    module = made(seeded)
    expected = answers(module)
    assert torch.equal(
        answers(loaded(saved(module.state_dict()), seeded, tmp_path).module), expected
    )


def test_a_lazy_layer_beside_a_plain_tensor_wakes(tmp_path: Path) -> None:
    text = code(
        "self.mean = torch.full((4, 1, 1), 0.5); self.own = nn.LazyLinear(16)",
        "self.own((planes - self.mean).flatten(1))",
    )
    module = made(text).eval()
    expected = answers(module)
    assert torch.equal(answers(loaded(saved(module.state_dict()), text, tmp_path).module), expected)


def test_what_only_the_code_can_read_of_a_file_is_named(tmp_path: Path) -> None:
    keeping = (
        "    def get_extra_state(self):\n        return {'scale': 2.0}\n"
        "    def set_extra_state(self, state):\n        pass\n    def forward"
    )
    text = code().replace("    def forward", keeping)
    with pytest.raises(InputRejectedError, match="_extra_state is a dict, which the code keeps"):
        loaded(saved(made(text).state_dict()), text, tmp_path)


def test_two_tensors_for_one_of_the_code_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    text = code("self.own = nn.Linear(16, 2); self.own.weight = self.head.weight")
    module = made(text)
    assert loaded(saved(module.state_dict()), text, tmp_path)
    apart = {**module.state_dict(), "own.weight": module.head.weight.detach() + 1}
    with pytest.raises(InputRejectedError, match=r"head.weight and own.weight are one tensor in"):
        loaded(saved(apart), text, tmp_path)


KEEPING = {
    "a lambda": ("self.own = lambda planes: self.extra(planes)", "self.own(planes)"),
    "a bound method": ("self.own = self.extra.forward", "self.own(planes)"),
    "a list of functions": ("self.own = [lambda x: self.extra(x)]", "self.own[0](planes)"),
}


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("frozen", [False, True])
def test_functions_that_keep_the_layers_that_they_were_made_with_are_written_out(
    name: str, frozen: bool, tmp_path: Path
) -> None:
    """A copy would go on calling the original's layers, so that nothing could change them."""
    more, used = KEEPING[name]
    layer = f"self.extra = nn.Conv2d(4, 4, 1).requires_grad_({not frozen}); "
    text = code(layer + more, used)
    module = made(text)
    expected = answers(module)
    network = loaded(saved(module.state_dict()), text, tmp_path)
    torch.testing.assert_close(answers(network.module), expected)
    own = network.module.get_submodule("extra")
    assert isinstance(own, nn.Conv2d)
    own.weight.data.zero_()
    own.bias.data.zero_()
    assert not torch.allclose(answers(network.module), expected)
    assert network.history[0].notes["written_out"]


@pytest.mark.parametrize("arguments", ["*, images", "images, mask"])
@pytest.mark.parametrize("head", ["nn.Linear(16, classes)", "nn.LazyLinear(classes)"])
def test_a_forward_that_needs_more_than_the_image_is_no_matter_of_its_shape(
    arguments: str, head: str, tmp_path: Path
) -> None:
    text = code().replace("forward(self, images)", f"forward(self, {arguments})")
    text = text.replace("nn.Linear(16, classes)", head)
    with pytest.raises(InputRejectedError, match="needs other arguments than the image; give --"):
        loaded(saved(made(code()).state_dict()), text, tmp_path)
