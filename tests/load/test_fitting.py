"""Which network of a file is taken: the one that fits, or the one that the user names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import CODE, SPEC, assert_equal_tensors, tiny
from torch import Tensor, nn

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.plan import choose_ranks
from edgeclean.compression.settings import RankSettings
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.load.architectures import build_architecture, libraries
from edgeclean.load.fitting import SavedNetworks, fitted, told
from edgeclean.load.limits import LoadLimits
from edgeclean.networks.state import LoadedNetwork, ModelSpec
from exporters.onnx_exporter import export_onnx

WEIGHTS = {name: tensor.clone() for name, tensor in tiny().state_dict().items()}
OTHERS = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
OPTIMISER = {"momentum": torch.ones(3)}
Tree = dict[tuple[str, ...], dict[str, Tensor]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    return tmp_path


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def parts(tensors: dict[str, Tensor], *key: str) -> Tree:
    """As of ``{"0": model[0].state_dict(), ...}``."""
    tree: Tree = {}
    for name, tensor in tensors.items():
        place, _, own = name.partition(".")
        tree.setdefault((*key, place), {})[own] = tensor
    return tree


FITTING: dict[str, tuple[Tree, str, str]] = {
    "alone": ({(): WEIGHTS}, "", ""),
    "under a key": ({("state_dict",): WEIGHTS}, "", "state_dict"),
    "under any key": ({("ema", "shadow"): WEIGHTS}, "", "ema/shadow"),
    "beside others": ({("model",): WEIGHTS, ("swav",): OPTIMISER}, "", "model"),
    "equal to another": ({("params",): WEIGHTS, ("params_ema",): dict(WEIGHTS)}, "", "params"),
    "named": ({("params",): OTHERS, ("params_ema",): WEIGHTS}, "params_ema", "params_ema"),
    "around its average": ({(): WEIGHTS | below("ema.", OTHERS)}, ".", ""),
    "in what it is the average of": ({(): OTHERS | below("ema.", WEIGHTS)}, "ema", "ema"),
    "equal to its average": ({(): WEIGHTS | below("ema.", dict(WEIGHTS))}, "", "ema"),
    "with a counter that was averaged": (
        {(): WEIGHTS | {"1.num_batches_tracked": torch.tensor(0.5)}},
        "",
        "",
    ),
    "with a counter of an axis": (
        {(): WEIGHTS | {"1.num_batches_tracked": torch.zeros(1, dtype=torch.int64)}},
        "",
        "",
    ),
    "in parts": (parts(WEIGHTS), "", ""),
    "in parts under a key": (parts(WEIGHTS, "model"), "", "model"),
    "in parts, one of two": (
        {**parts(OTHERS, "student"), **parts(WEIGHTS, "teacher")},
        "teacher",
        "teacher",
    ),
    "named by its prefix": (
        {("state_dict",): below("student.", WEIGHTS) | below("teacher.", OTHERS)},
        "state_dict/student",
        "state_dict/student",
    ),
}


@pytest.mark.parametrize("case", FITTING)
def test_the_one_network_that_fits_is_taken(case: str, folder: Path) -> None:
    networks, choice, label = FITTING[case]
    limits = LoadLimits(state_dict=choice)
    module, notes = fitted(SavedNetworks(networks=networks), SPEC, limits, folder)
    assert_equal_tensors(module.state_dict(), WEIGHTS)
    assert notes.get("network", "") == label
    assert label in "".join(told(notes))


REFUSED: dict[str, tuple[Tree, str]] = {
    "two fit": (
        {("params",): WEIGHTS, ("params_ema",): OTHERS},
        "2 networks that fit, under params, params_ema; choose one, such as --state-dict params",
    ),
    "two under prefixes": (
        {(): below("student.", WEIGHTS) | below("teacher.", OTHERS)},
        "2 networks that fit, under student, teacher; choose one, such as --state-dict student",
    ),
    "an average in what it is of": (
        {(): WEIGHTS | below("ema.", OTHERS)},
        "2 networks that fit, under ema, .; choose one",
    ),
    "an average in a part of the file": (
        {(): below("model.", WEIGHTS) | below("model.ema.", OTHERS)},
        "2 networks that fit, under model.ema, model; choose one",
    ),
    "a wrapped one beside a bare one": (
        {(): WEIGHTS | below("module.", OTHERS)},
        "2 networks that fit, under module, .; choose one",
    ),
    "two in parts": (
        {**parts(WEIGHTS, "student"), **parts(OTHERS, "teacher")},
        "2 networks that fit, under student, teacher; choose one",
    ),
    "none fits": (
        {("net",): OPTIMISER, ("model",): {**WEIGHTS, "x": torch.ones(1)}},
        "holds 2 networks, under net, model, and none fits; of model: the names do not match the "
        "architecture: missing none; unexpected 1 (x)",
    ),
    "the nearest prefix is told": (
        {("state_dict",): below("model.", {**WEIGHTS, "x": torch.ones(1)})},
        "the names do not match the architecture: missing none; unexpected 1 (x)",
    ),
    "a head of other classes": (
        {(): {**WEIGHTS, "4.weight": torch.ones(7, 16), "4.bias": torch.ones(7)}},
        "its last layer has 7 outputs, and the architecture's 2: give --classes 7",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_with_what_is_there(case: str, folder: Path) -> None:
    networks, message = REFUSED[case]
    with pytest.raises(InputRejectedError) as caught:
        fitted(SavedNetworks(networks=networks), SPEC, LoadLimits(), folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_count_of_classes_is_advised_that_no_network_has(folder: Path) -> None:
    networks = {(): {**WEIGHTS, "4.weight": torch.ones(0, 16), "4.bias": torch.ones(0)}}
    with pytest.raises(InputRejectedError, match=r"\(4.weight is 0x16 .*, 4.bias is 0 for 2\)$"):
        fitted(SavedNetworks(networks=networks), SPEC, LoadLimits(), folder)


def test_a_name_that_is_not_there_is_a_usage_error(folder: Path) -> None:
    networks: Tree = {("params",): WEIGHTS, ("params_ema",): OTHERS}
    limits = LoadLimits(state_dict="ema")
    with pytest.raises(UsageError, match="'ema': no network of that name fits; there is params, "):
        fitted(SavedNetworks(networks=networks), SPEC, limits, folder)
    with pytest.raises(UsageError, match="the file itself is the one that does"):
        fitted(SavedNetworks(networks={(): WEIGHTS}), SPEC, limits, folder)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-v2", "vgg11-bn"])
def test_built_in_architectures_choose_their_names_behind_a_prefix(name: str) -> None:
    spec = ModelSpec(
        architecture=name, input_shape=(3, 32, 32), classes=4, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    weights = build_architecture(name, spec, ()).state_dict()
    tensors = below("model.module.", weights) | {"loss.weight": torch.ones(4)}
    module, notes = fitted(SavedNetworks(networks={(): tensors}), spec, LoadLimits(), None)
    assert_equal_tensors(module.state_dict(), weights)
    assert notes["names"] == [
        "'module' taken out of the names",
        "'model.' taken from the names",
        "left out: loss.weight",
    ]


LAZY = """
from torch import nn
def tiny(classes):
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )
class Asleep(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.net, self.spare = tiny(classes), nn.LazyLinear(3)
    def forward(self, images):
        return self.net(images)
"""


def test_lazy_layers_get_their_shapes_from_one_image(folder: Path) -> None:
    (folder / "net.py").write_text(LAZY, encoding="utf-8")
    state = torch.get_rng_state()
    module, _ = fitted(SavedNetworks(networks={(): WEIGHTS}), SPEC, LoadLimits(), folder)
    assert_equal_tensors(module.state_dict(), WEIGHTS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "net.py:Asleep"}, "lazy layer 'spare' does not run on an image"),
        ({"input_shape": (3, 2, 2)}, "lazy layers get no shape from an image of 3x2x2"),
    ],
)
def test_lazy_layers_without_a_shape_are_refused(
    changes: dict[str, object], message: str, folder: Path
) -> None:
    (folder / "net.py").write_text(LAZY, encoding="utf-8")
    spec = dataclasses.replace(SPEC, **changes)  # type: ignore[arg-type]
    with pytest.raises(InputRejectedError, match=message):
        fitted(SavedNetworks(networks={(): WEIGHTS}), spec, LoadLimits(), folder)


class Library:
    """A library of one network, which tells where it was built."""

    def __init__(self, *, reads_numbers: bool) -> None:
        self.built: list[str] = []
        self._reads_numbers = reads_numbers

    def __call__(self, _name: str, spec: ModelSpec) -> nn.Module:
        layer = nn.Linear(12, spec.classes)
        self.built.append(layer.weight.device.type)
        if self._reads_numbers:
            torch.ones(1).item()
        return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize(
    ("classes", "reads_numbers", "built"),
    [
        (5, False, ["meta", "cpu"]),
        (5, True, ["meta", "cpu"]),
        (60_000, False, ["meta"]),
        (60_000, True, ["meta", "cpu"]),
    ],
)
def test_a_network_of_a_library_takes_memory_only_where_it_fits(
    classes: int, reads_numbers: bool, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config.json says the classes; some networks read numbers while they are built."""
    library = Library(reads_numbers=reads_numbers)
    monkeypatch.setattr(libraries, "_LIBRARIES", {"timm": library})
    weights = {"1.weight": torch.ones(5, 12), "1.bias": torch.ones(5)}
    spec = dataclasses.replace(SPEC, architecture="timm:own", classes=classes)
    saved = SavedNetworks(networks={(): weights})
    before = torch.get_rng_state()
    if classes == 5:
        assert_equal_tensors(fitted(saved, spec, LoadLimits(), None)[0].state_dict(), weights)
    else:
        with pytest.raises(InputRejectedError, match="give --classes 5 if those are all"):
            fitted(saved, spec, LoadLimits(), None)
    assert library.built == built
    assert torch.equal(torch.get_rng_state(), before)


DRAWN = """
import torch
from torch import nn
class tiny(nn.Sequential):
    def __init__(self, classes):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
        )
        {}
"""


@pytest.mark.parametrize(
    "line",
    [
        "self.register_buffer('mask', torch.rand(4), persistent=False)",
        "self[0].mask = torch.rand(4)",
    ],
)
def test_numbers_drawn_at_random_that_no_file_holds_are_refused(line: str, folder: Path) -> None:
    (folder / "net.py").write_text(DRAWN.format(line), encoding="utf-8")
    before = torch.get_rng_state()
    with pytest.raises(InputRejectedError, match="mask is drawn at random when the network is"):
        fitted(SavedNetworks(networks={(): WEIGHTS}), SPEC, LoadLimits(), folder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize(
    "line",
    [
        "self.register_buffer('mask', torch.arange(4.0), persistent=False)",
        "self.mask = torch.rand(4, generator=torch.Generator().manual_seed(7))",
        "self.mask = self[0].weight",
        "self.mask = self[0].weight.detach()[:2]",
        "self.mask = torch.eye(4).to_sparse()",
    ],
)
def test_numbers_that_are_the_same_in_every_run_are_taken(line: str, folder: Path) -> None:
    (folder / "net.py").write_text(DRAWN.format(line), encoding="utf-8")
    module, _ = fitted(SavedNetworks(networks={(): WEIGHTS}), SPEC, LoadLimits(), folder)
    assert module.mask is not None


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_what_older_norms_make_of_others_is_not_taken_for_drawn(folder: Path) -> None:
    line = "nn.utils.weight_norm(self[0]); nn.utils.spectral_norm(self[4])"
    (folder / "net.py").write_text(DRAWN.format(line), encoding="utf-8")
    made = build_architecture("net.py:tiny", SPEC, (), code_folder=folder)
    module, _ = fitted(SavedNetworks(networks={(): made.state_dict()}), SPEC, LoadLimits(), folder)
    assert_equal_tensors(module.state_dict(), made.state_dict())


SILENT = """
from torch import nn
class tiny(nn.Sequential):
    def __init__(self, classes):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
        )
    def train(self, mode=True):
        super().train(mode)
"""


def test_a_network_whose_train_returns_nothing_goes_through_the_stages(folder: Path) -> None:
    """As mmcv's backbones do; ``eval`` returns what ``train`` does."""
    (folder / "net.py").write_text(SILENT, encoding="utf-8")
    module, _ = fitted(SavedNetworks(networks={(): WEIGHTS}), SPEC, LoadLimits(), folder)
    assert not any(part.training for part in module.modules())
    network = LoadedNetwork(module=module, spec=SPEC, source_sha256="ab" * 32)
    factored = decompose(network, DecomposeSettings())
    assert factored.module.eval() is None  # it is the user's own still
    plan = choose_ranks(factored, RankSettings(ratio=1.1))
    assert export_onnx(truncate(factored, plan, TruncateSettings()))


@pytest.mark.parametrize(
    ("code", "which"),
    [
        ("torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3)))", "the network is TorchScript"),
        ("nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.SiLU()))", "its part 1 is"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_refused_in_a_line_with_a_way(code: str, which: str, folder: Path) -> None:
    """No stage can hook or replace its layers."""
    text = f"import torch\nfrom torch import nn\ndef tiny(classes): return {code}\n"
    (folder / "net.py").write_text(text, encoding="utf-8")
    with pytest.raises(InputRejectedError, match=which) as caught:
        fitted(SavedNetworks(networks={(): WEIGHTS}), SPEC, LoadLimits(), folder)
    assert "export the network to ONNX" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
