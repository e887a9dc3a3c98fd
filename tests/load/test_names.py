"""Names that training tools add are undone where the rest fits exactly, and only there."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_checkpoint import assert_equal_tensors, tiny
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from edgeclean.load.names import Renamed, fits

WEIGHTS = tiny().state_dict()


def renamed(change: Any, weights: Mapping[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {change(name): tensor for name, tensor in weights.items()}


def ways(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor] = WEIGHTS) -> list[Renamed]:
    return fits(tensors, lambda _: needed)


def only(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor] = WEIGHTS) -> Renamed:
    (way,) = ways(tensors, needed)
    return way


def scalar(number: float = 0.0) -> Tensor:
    return torch.tensor([number], dtype=torch.float64)


ADDED: dict[str, dict[str, Tensor]] = {
    "as it is": dict(WEIGHTS),
    "DataParallel": renamed("module.{}".format),
    "torch.compile": renamed("_orig_mod.{}".format),
    "compiled in parallel": renamed("module._orig_mod.{}".format),
    "FSDP": renamed("_fsdp_wrapped_module.{}".format),
    "Lightning": renamed("model.{}".format),
    "Lightning, compiled": renamed("model._orig_mod.{}".format),
    "Lightning with a loss": {**renamed("net.{}".format), "criterion.weight": torch.ones(5)},
    "Lightning with metrics": {
        **renamed("backbone.net.{}".format),
        "train_acc.tp": torch.zeros(2),
        "val_acc.tp": torch.zeros(2),
    },
    "averaged": {"n_averaged": torch.tensor(7), **renamed("module.{}".format)},
    "counted by thop": {
        **WEIGHTS,
        **{f"{layer}total_ops": scalar() for layer in ("", "0.", "1.", "4.")},
        "0.total_params": scalar(),
    },
    "without batches": {k: v for k, v in WEIGHTS.items() if not k.endswith("tracked")},
}


@pytest.mark.parametrize("tool", ADDED)
def test_names_of_tools_are_undone(tool: str) -> None:
    way = only(ADDED[tool])
    expected = {k: v for k, v in WEIGHTS.items() if k in way.tensors}
    assert_equal_tensors(dict(way.tensors), expected)
    assert all(name.endswith("tracked") for name in WEIGHTS.keys() - expected.keys())
    changed = tool not in ("as it is", "without batches")
    assert bool(way.done) == changed, "what was done is told, and nothing else"


def test_prefixes_of_any_kind_in_any_number() -> None:
    draw = random.Random(0)
    words = ["model", "net", "module", "encoder", "_orig_mod", "student", "0", "a_b"]
    for _ in range(60):
        prefix = "".join(f"{draw.choice(words)}." for _ in range(draw.randint(1, 3)))
        others = {f"loss.{index}": torch.ones(2) for index in range(draw.randint(0, 3))}
        way = only({**renamed(lambda name, p=prefix: p + name), **others})
        assert_equal_tensors(dict(way.tensors), WEIGHTS)


def test_wrappers_within_the_names_and_in_the_architecture() -> None:
    split = renamed(lambda name: f"features.module.{name}")
    assert_equal_tensors(dict(only(split).tensors), WEIGHTS)
    wrapped = renamed("module.{}".format)
    assert_equal_tensors(dict(only(WEIGHTS, wrapped).tensors), wrapped)
    assert_equal_tensors(dict(only(renamed("model.{}".format), wrapped).tensors), wrapped)
    inner = renamed("backbone.{}".format)
    assert_equal_tensors(dict(only(WEIGHTS, inner).tensors), inner)


@pytest.mark.parametrize(
    "tensors",
    [
        {**WEIGHTS, "9.bias": torch.ones(1)},
        {**renamed("model.{}".format), "model.9.bias": torch.ones(1)},
        {k: v for k, v in renamed("model.{}".format).items() if k != "model.0.bias"},
        {**renamed("model.{}".format), "model.0.bias": torch.ones(5)},
        {**WEIGHTS, "ops": scalar()},
    ],
    ids=["extra", "extra below", "missing", "another shape", "no counter"],
)
def test_what_does_not_fit_exactly_is_not_taken(tensors: dict[str, Tensor]) -> None:
    assert ways(tensors) == []


def test_two_networks_in_one_table_are_two_ways() -> None:
    other = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    both = {**renamed("student.{}".format), **renamed("teacher.{}".format, other)}
    assert [way.prefix for way in ways(both)] == ["student.", "teacher."]


def test_a_single_layer_is_not_found_within_a_network() -> None:
    head = nn.Linear(16, 2).state_dict()
    assert ways(WEIGHTS, head) == []


class Name(str):
    """A text that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str(self) == other

    __hash__ = str.__hash__


def test_counters_are_not_compared_each_with_each() -> None:
    counters = {Name(f"{index}.total_ops"): scalar() for index in range(400)}
    Name.compared = 0
    (way,) = ways({**WEIGHTS, **counters})
    assert_equal_tensors(dict(way.tensors), WEIGHTS)
    assert way.done == ("400 of 'total_ops' left out",)
    assert Name.compared < 20 * len(counters)


# Weights in parts.


def convolution() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()


def pruned(module: nn.Sequential) -> None:
    for layer in (module[0], module[2]):
        prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    prune.random_unstructured(module[2], "bias", amount=1)  # type: ignore[no-untyped-call]


def old_spectral(module: nn.Sequential) -> None:
    for place in (0, 2):
        module[place] = spectral_norm(module[place], n_power_iterations=3)
    module.train()(torch.ones(1, 3, 4, 4))
    module.eval()


def new_spectral(module: nn.Sequential) -> None:
    for place in (0, 2):
        parametrizations.spectral_norm(module[place], n_power_iterations=3)
    module.train()(torch.ones(1, 3, 4, 4))
    module.eval()


SQUARE: dict[str, tuple[nn.Module, int]] = {  # as many inputs as outputs; the axis of the rows
    "transposed": (nn.ConvTranspose2d(8, 8, 2), 1),
    "of its inputs": (nn.Conv2d(8, 8, 3), 1),
    "of its outputs": (nn.Conv2d(8, 8, 3), 0),
    "of its columns": (nn.Conv2d(8, 8, (3, 8)), 3),
}


@pytest.mark.parametrize("form", [spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("kind", SQUARE)
def test_the_axis_of_spectral_normalisation_is_read_off_its_vectors(kind: str, form: Any) -> None:
    plain, axis = SQUARE[kind]
    layer = copy.deepcopy(plain)
    form(layer, n_power_iterations=2, dim=axis)
    layer.train()(torch.ones(1, 8, 9, 9))
    layer.eval()
    wanted = {name: layer.weight if name == "weight" else layer.bias for name in ("weight", "bias")}
    way = only(layer.state_dict(), plain.state_dict())
    torch.testing.assert_close(dict(way.tensors), {k: v.detach() for k, v in wanted.items()})


def test_vectors_of_two_axes_are_not_guessed_between() -> None:
    weight = torch.eye(4)[..., None, None]
    vector = torch.ones(4) / 2
    tensors = {"weight_orig": weight, "weight_u": vector, "weight_v": vector, "bias": vector}
    assert fits(tensors, lambda _: {"weight": weight, "bias": vector}) == []


def test_what_quantisation_watches_with_is_left_out() -> None:
    module = convolution()
    tensors = {
        **module.state_dict(),
        **{
            f"{layer}.{part}": torch.ones(1)
            for layer in ("0", "2")
            for part in ("activation_post_process.scale", "weight_fake_quant.zero_point")
        },
    }
    way = only(tensors, module.state_dict())
    assert_equal_tensors(dict(way.tensors), module.state_dict())
    assert "4 of quantisation's observers left out" in way.done


PARTS: dict[str, Any] = {
    "pruned": pruned,
    "weight normalised": lambda module: [weight_norm(module[place]) for place in (0, 2)],
    "of one length": lambda module: weight_norm(module[0], dim=None),
    "by columns": lambda module: weight_norm(module[2], dim=1),
    "parametrised": lambda module: [parametrizations.weight_norm(module[at]) for at in (0, 2)],
    "spectrally normalised": old_spectral,
    "spectrally parametrised": new_spectral,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
@pytest.mark.parametrize("kind", PARTS)
def test_parts_make_the_weights_that_the_network_computes_with(kind: str, prefix: str) -> None:
    module, plain = convolution(), convolution()
    PARTS[kind](module)
    tensors = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    way = only(tensors, plain.state_dict())
    plain.load_state_dict(dict(way.tensors))
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(plain(images), module(images))
    assert any("weights" in line for line in way.done)
    # And an architecture that has the same parts keeps them.
    assert_equal_tensors(dict(only(tensors, tensors).tensors), tensors)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("prefix", ["", "model."])
def test_normalised_weights_have_the_names_that_the_architecture_has_for_them(prefix: str) -> None:
    """Code that moved to ``torch.nn.utils.parametrizations`` still gets its older checkpoints."""
    older, newer = convolution(), convolution()
    PARTS["weight normalised"](older)
    PARTS["parametrised"](newer)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for given, architecture in ((older, newer), (newer, older)):
        with torch.no_grad():
            for parameter in given.parameters():
                parameter.mul_(1.5)
        tensors = {prefix + name: tensor for name, tensor in given.state_dict().items()}
        way = only(tensors, architecture.state_dict())
        architecture.load_state_dict(dict(way.tensors))
        with torch.no_grad():
            torch.testing.assert_close(architecture(images), given(images))
        assert "2 weights of weight normalisation under its other names" in way.done


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_are_filled_by_the_one_that_was_saved(device: str) -> None:
    with torch.device(device):
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        module[2].weight = module[0].weight
    tensors = {name: torch.rand(one.shape) for name, one in module.state_dict().items()}
    del tensors["2.weight"]  # as safetensors.torch.save_model does
    way = only(tensors, module.state_dict())
    assert way.tensors["2.weight"] is tensors["0.weight"]
    assert way.done == ("1 tied to one that was saved",)
    untied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert ways(tensors, untied.state_dict()) == []


def test_parts_that_do_not_belong_together_stay_parts() -> None:
    plain = convolution().state_dict()
    for mask in (torch.ones(1), torch.ones(4, 3, 3, 1)):
        tensors = {k: v for k, v in plain.items() if k != "0.weight"}
        tensors |= {"0.weight_orig": plain["0.weight"], "0.weight_mask": mask}
        assert ways(tensors, plain) == []
