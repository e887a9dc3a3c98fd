"""A whole network in a pickle is its state dict, and what else it says is held against the code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import CODE, SPEC, assert_equal_tensors, saved, tiny
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.fitting import told
from edgeclean.load.limits import LoadLimits
from edgeclean.load.pickled_layers import MOST_LAYERS, layers_of
from edgeclean.load.pickles import Named, StandIn
from edgeclean.networks.state import LoadedNetwork

# As in tiny_checkpoint, but for a class of the user's own that holds a number.
OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, classes, scale=1.0):
        super().__init__()
        self.scale, self.epoch = scale, 0
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
        )
    def forward(self, images):
        return self.body(images) * self.scale
def tiny(classes):
    return Net(classes)
"""


def loaded(contents: bytes, folder: Path, code: str | None = None) -> LoadedNetwork:
    (folder / "net.py").write_text(code or CODE, encoding="utf-8")
    (folder / "a.pth").write_bytes(contents)
    return load_checkpoint(folder / "a.pth", SPEC, limits=LoadLimits(), code_folder=folder)


def put(place: int, layer: nn.Module) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        module[place] = layer  # type: ignore[operator]

    return change


def give(place: int, name: str, value: object) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module[place], name, value)  # type: ignore[index]


OTHERS: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "stride": (give(0, "stride", (2, 2)), "0.stride is [2, 2], (1, 1) here"),
    "padding": (give(0, "padding", "same"), "0.padding is 'same', (0, 0) here"),
    "eps": (give(1, "eps", 0.1), "1.eps is 0.1, 1e-05 here"),
    "class": (put(2, nn.Hardtanh()), "2 is Hardtanh, ReLU here"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_that_the_code_makes_otherwise_are_refused(
    name: str, wrapped: bool, tmp_path: Path
) -> None:
    change, words = OTHERS[name]
    module = tiny()
    change(module)
    tree = {"epoch": 3, "model": nn.DataParallel(module)} if wrapped else module
    with pytest.raises(InputRejectedError) as caught:
        loaded(saved(tree), tmp_path)
    assert words in str(caught.value)
    assert "save torch.save(model.state_dict(), ...) instead" in str(caught.value)


ALIKE: dict[str, Callable[[nn.Module], None]] = {
    "nothing": lambda module: None,
    "a number for two": give(0, "stride", 1),
    "of an older version": give(2, "threshold", 0.0),
    "called as the class is": give(0, "class", 5),
    "two of a number": give(3, "end_dim", (-1,)),
    "what no layer has": give(1, "own", "x" * 51),
    "momentum": give(1, "momentum", 0.5),
    "a class that does the same": put(1, nn.SyncBatchNorm(4)),
    "something left out": put(2, nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_makes_no_other_answer_is_no_difference(name: str, tmp_path: Path) -> None:
    module = tiny()
    ALIKE[name](module)
    network = loaded(saved(module), tmp_path)
    assert_equal_tensors(network.module.state_dict(), module.state_dict())
    assert "differences" not in network.history[0].notes


NUMBERS = """
import torch
from torch import nn
def tiny(classes):
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
    )
    made[0].mean = torch.full((3, 1, 1), 0.5)
    made.register_buffer("grid", torch.arange(4), persistent=False)
    return made
"""


@pytest.mark.parametrize(
    ("place", "numbers"),
    [
        ("0.mean", torch.full((3, 1, 1), 0.4)),
        ("0.mean", torch.full((1, 3, 1, 1), 0.5)),
        ("grid", torch.arange(1, 5)),
    ],
)
def test_tensors_beside_the_state_dict_are_those_of_the_code(
    place: str, numbers: Tensor, tmp_path: Path
) -> None:
    module = tiny()
    module[0].mean = torch.full((3, 1, 1), 0.5)  # type: ignore[index, union-attr]
    module.register_buffer("grid", torch.arange(4), persistent=False)
    module[2].last = torch.ones(3)  # type: ignore[index, union-attr]  # which no code has
    module[2].odd = torch.eye(3).to_sparse()  # type: ignore[index, union-attr]
    assert loaded(saved(module), tmp_path, NUMBERS)
    module[0].mean *= 1 + 1e-7  # type: ignore[index, operator, union-attr]  # rounded otherwise
    assert loaded(saved(module), tmp_path, NUMBERS)
    halved = copy.deepcopy(module)
    halved[0].mean = halved[0].mean.half()  # type: ignore[index, operator, union-attr]
    assert loaded(saved(halved), tmp_path, NUMBERS)
    owner, _, name = place.rpartition(".")
    setattr(module.get_submodule(owner), name, numbers)
    for tree in (module, {"model": nn.DataParallel(module)}):
        with pytest.raises(InputRejectedError, match=f"in which {place} has other numbers"):
            loaded(saved(tree), tmp_path, NUMBERS)


def test_numbers_of_a_class_of_ones_own_are_told(tmp_path: Path) -> None:
    names: dict[str, type[nn.Module]] = {"__name__": "__main__"}
    exec(OWN, names)  # noqa: S102 - the text above, as load_checkpoint imports it
    module = names["Net"](2, scale=0.37)
    # Pickled by its name; the class is put where that is looked up.
    import __main__

    __main__.Net = names["Net"]  # type: ignore[attr-defined]
    try:
        contents = saved(module)
    finally:
        del __main__.Net  # type: ignore[attr-defined]
    notes = loaded(contents, tmp_path, OWN).history[0].notes
    assert notes["differences"] == ["it.scale is 0.37, 1.0 here"]
    assert "it.scale is 0.37" in " ".join(told(notes))


def test_a_state_dict_says_nothing_of_its_layers(tmp_path: Path) -> None:
    module = tiny()
    module[0].stride = (2, 2)  # type: ignore[index, union-attr]
    assert loaded(saved(module.state_dict()), tmp_path)


def test_layers_without_an_end_are_bounded(tmp_path: Path) -> None:
    module = tiny()
    for number in range(200):
        setattr(module[0], f"a{number}", list(range(9)))  # type: ignore[index]
        setattr(module[0], f"b{number}", number)  # type: ignore[index]
    assert loaded(saved(module), tmp_path)
    give(0, "eps", 10**5000)(module)  # which Python writes in no text
    give(1, "momentum", [10**5000])(module)
    give(1, "note", "\x1b[31m")(module)
    assert loaded(saved(module), tmp_path)
    give(0, "stride", (2, 2))(module)  # which is never crowded out
    with pytest.raises(InputRejectedError, match=r"0\.stride"):
        loaded(saved(module), tmp_path)


def test_no_more_layers_are_kept_than_a_network_has() -> None:
    node = StandIn(Named("torch.nn.modules.conv.Conv2d"), (), state={"stride": (1, 1), 3: 4})
    many = layers_of((str(place), node) for place in range(MOST_LAYERS + 5))
    assert len(many) == MOST_LAYERS
    assert many["0"] == {"class": "torch.nn.modules.conv.Conv2d", "stride": [1, 1]}
