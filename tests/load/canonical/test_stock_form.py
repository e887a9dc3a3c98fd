"""Which networks are left alone, which are written out, and which are refused, in what words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from odd_networks import By, FrozenNorm, Recipe, SameConv, spec_of
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import converted
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from edgeclean.errors import InputRejectedError
from edgeclean.load.canonical.form import Form, as_stock_layers, stock_form
from edgeclean.load.limits import LoadLimits
from edgeclean.networks.layers import trace_layers

LIMITS = LoadLimits()
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def form_of(module: nn.Module, classes: int = 5, limits: LoadLimits = LIMITS) -> Form:
    return stock_form(module.eval(), spec_of(classes=classes), limits)


def plain(*middle: nn.Module, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        *middle,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def test_a_network_of_stock_layers_is_left_alone() -> None:
    """The very module, its weights' order in memory, its hooks and its mode; and no random draw."""
    module = plain(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)).eval()
    before = {name: (one.clone(), one.stride()) for name, one in module.state_dict().items()}
    state = torch.get_rng_state()
    form = form_of(module)
    assert form.module is module
    assert form.notes == {}
    assert torch.equal(state, torch.get_rng_state())
    for name, one in module.state_dict().items():
        assert torch.equal(one, before[name][0])
        assert one.stride() == before[name][1], name
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm, torch.nn.utils.spectral_norm])
def test_a_made_weight_becomes_a_plain_one_under_its_name(norm: Any) -> None:
    module = plain(norm(nn.Conv2d(8, 8, 3))).eval()
    with torch.no_grad():
        expected = module(IMAGES)
    form = form_of(module)
    assert form.notes == {"settled": ["3"]}
    assert type(form.module.get_submodule("3")) is nn.Conv2d
    assert set(dict(form.module.get_submodule("3").named_parameters())) == {"weight", "bias"}
    with torch.no_grad():
        assert torch.allclose(form.module(IMAGES), expected, atol=1e-6)
    assert [layer.reason for layer in trace_layers(form.module, (3, 32, 32))][:2] == ["", ""]


def test_a_pruned_convolution_is_settled_with_its_zeros() -> None:
    module = plain(nn.Conv2d(8, 8, 3))
    prune.l1_unstructured(module[3], "weight", amount=0.5)
    form = form_of(module)
    assert form.notes == {"settled": ["3"]}
    assert int((form.module.get_submodule("3").weight == 0).sum()) == 8 * 8 * 9 // 2


def test_a_frozen_batchnorm_becomes_a_batchnorm_with_its_statistics() -> None:
    norm = FrozenNorm(8)
    norm.running_mean.uniform_(-1, 1)
    norm.weight.uniform_(0.5, 2)
    module = plain(nn.Conv2d(8, 8, 3), norm).eval()
    with torch.no_grad():
        expected = module(IMAGES)
    form = form_of(module)
    settled = form.module.get_submodule("4")
    assert type(settled) is nn.BatchNorm2d
    assert torch.equal(settled.running_mean, norm.running_mean)
    with torch.no_grad():
        assert torch.allclose(form.module(IMAGES), expected, atol=1e-6)


class Liar(FrozenNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Clamped(FrozenNorm):
    """As the other, but for images of large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(max=6.0)


@pytest.mark.parametrize("kind", [Liar, Clamped])
def test_what_only_looks_like_a_batchnorm_stays(kind: type[nn.Module]) -> None:
    assert form_of(plain(kind(8))).notes == {}


def test_the_reason_names_the_layer_and_is_the_same_in_every_run() -> None:
    for _ in range(2):
        form = form_of(plain(SameConv(8, 8, 3)))
        assert form.notes == {
            "written_out": "layer 3 is a SameConv, a kind of convolution of its own"
        }
    read = Recipe(middles=("weight-read",)).build()
    notes = stock_form(read, Recipe().spec, LIMITS).notes
    assert notes == {"written_out": "used as the stages do, it raises AttributeError"}


def test_even_padding_is_the_convolutions_own_and_uneven_padding_a_step() -> None:
    form = form_of(plain(SameConv(8, 8, 3), SameConv(8, 8, 2)))
    kinds = [type(one).__name__ for one in form.module.children()]
    convolutions = [one for one in form.module.modules() if isinstance(one, nn.Conv2d)]
    assert [one.padding for one in convolutions] == [(1, 1), (1, 1), (0, 0)]
    assert kinds.count("Operation") >= 1


@torch.no_grad()
@pytest.mark.parametrize("planes", [True, False])
def test_a_synchronised_norm_becomes_a_plain_one_where_it_is_of_planes(planes: bool) -> None:
    """In evaluation they are the same, and every stage knows the one of planes."""
    norm = nn.SyncBatchNorm(8, eps=1e-3, momentum=None)
    norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    rows = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, nn.Unflatten(1, (8, 1, 1))]
    convolution = nn.Conv2d(8, 8, 1)
    network = plain(*([convolution, norm, convolution, norm] if planes else rows)).eval()
    names, weights = network.state_dict().keys(), {id(one) for one in network.parameters()}
    expected = network(IMAGES)
    form = form_of(network)
    assert form.notes == ({"settled": ["4", "6"]} if planes else {})
    assert form.module.state_dict().keys() == names
    assert {id(one) for one in form.module.parameters()} == weights
    kinds = {type(one) for one in form.module.modules()}
    assert (nn.SyncBatchNorm in kinds) == (not planes)
    if planes:
        settled = form.module.get_submodule("4")
        assert settled is form.module.get_submodule("6")
        assert (type(settled), settled.eps, settled.momentum) == (nn.BatchNorm2d, 1e-3, None)
    assert torch.equal(form.module(IMAGES), expected)
    assert not any(one._forward_hooks for one in form.module.modules())


@pytest.mark.parametrize("classes", [2, 5])
def test_members_with_trailing_axes_and_one_logit(classes: int) -> None:
    """One logit z stands for the second of two classes: their logits are 0 and z."""
    columns = 1 if classes == 2 else classes
    network = nn.Sequential(*plain(classes=columns)[:-1], nn.Unflatten(1, (8, 1, 1)))
    network = nn.Sequential(*network, nn.Conv2d(8, columns, 1)).eval()
    with torch.no_grad():
        expected = network(IMAGES).flatten(1)
        got = form_of(network, classes=classes).module(IMAGES)
    if classes == 2:
        expected = torch.cat([torch.zeros(3, 1), expected], 1)
    assert torch.allclose(got, expected, atol=1e-6)


def two_heads(module: Any, x: Tensor) -> Any:
    return module.a(x), module.b(x)


REFUSED = {
    "two heads": (By(two_heads, a=plain(), b=plain()), "several tensors with 5 columns"),
    "no head": (By(lambda m, x: (m.a(x), x), a=plain(classes=7)), "gives tuple; with 5 classes"),
    "random": (
        By(lambda m, x: m.a(functional.dropout(x)), a=plain()),
        "answers the same images differently from run to run",
    ),
    "mixed": (
        By(lambda m, x: m.a(x - x.mean(0)), a=plain()),
        "hangs on the others of its batch",
    ),
    "random among tiny answers": (
        By(lambda m, x: m.a(functional.dropout(x)).softmax(1) * 1e-2, a=plain()),
        "answers the same images differently from run to run",
    ),
    "mixed into tiny answers": (
        By(lambda m, x: m.a(x - x.mean(0)).softmax(1) * 1e-2, a=plain()),
        "hangs on the others of its batch",
    ),
    "batch statistics": (
        By(lambda m, x: m.a(functional.batch_norm(x, None, None, training=True)), a=plain()),
        "hangs on the others of its batch",
    ),
    "decides": (
        By(lambda m, x: m.a(x.detach() if x.sum() > 0 else x.detach() * 2), a=plain()),
        "decides by the numbers of its images",
    ),
    "one at a time": (
        By(lambda m, x: torch.cat([m.a(one[None]) for one in x.detach()]), a=plain()),
        "something else for each number of images",
    ),
    "no numbers": (
        By(lambda m, x: m.a(x) / (x.amax((1, 2, 3)) > 5)[:, None], a=plain()),
        "with NaN or infinity",
    ),
    "fixed batch": (
        By(lambda m, x: m.a(x).view(1, 5), a=plain()),
        "does not take 2 images at once",
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refusal_is_one_line_with_the_reason_and_a_way(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    module, words = REFUSED[name]
    with pytest.raises(InputRejectedError) as caught:
        form_of(module)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")  # torch.export prints the graph of what it refuses


def test_code_that_cannot_be_written_out_is_kept_where_the_stages_can_take_it() -> None:
    module = By(lambda m, x: torch.cat([m.a(one[None]) for one in x]), a=plain(SameConv(8, 8, 3)))
    form = form_of(module)
    assert form.module is module
    assert list(form.notes) == ["kept_as_it_is"]


def test_a_graph_may_have_so_many_calls() -> None:
    with pytest.raises(InputRejectedError, match="the limit onnx_nodes is 9"):
        as_stock_layers(plain().eval(), spec_of(), LoadLimits(onnx_nodes=9))


def test_constants_may_take_so_much_memory() -> None:
    module = By(lambda m, x: m.a(x) + m.wide.repeat(999, 1)[0], a=plain(), wide=torch.zeros(9, 5))
    with pytest.raises(InputRejectedError, match="constants pass the limit file_bytes"):
        as_stock_layers(module.eval(), spec_of(), LoadLimits(file_bytes=1000))


def test_weights_that_are_shared_stay_shared() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    module = By(
        lambda m, x: m.b(functional.conv2d(m.a(x), m.c.weight, stride=2).relu()),
        a=nn.Conv2d(3, 8, 3),
        c=shared,
        b=nn.Sequential(shared, *plain()[3:]),
    )
    form = form_of(module)
    tied = [layer for layer in trace_layers(form.module, (3, 32, 32)) if "shares" in layer.reason]
    assert len(tied) == 2
    assert tied[0].module.weight is tied[1].module.weight


def test_a_layer_that_runs_twice_is_one_layer() -> None:
    form = stock_form(Recipe(middles=("twice",), head="tuple").build(), Recipe().spec, LIMITS)
    runs = {layer.name: layer.runs for layer in trace_layers(form.module, (3, 32, 32))}
    assert runs == {"body.0": 1, "body.1.conv": 2, "fc": 1}


def test_an_onnx_graph_that_ends_in_planes_is_taken() -> None:
    """As SqueezeNet and DenseNet of the ONNX zoo do."""
    numbers = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "v": (5, 8, 1, 1)}
    weights = [
        numpy_helper.from_array(numbers.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Conv", ["c", "v"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, 32, 32]), ("y", ["n", 5, 1, 1]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    network = converted(model.SerializeToString())
    form = form_of(network)
    assert form.module(IMAGES).shape == (3, 5)
    assert torch.allclose(form.module(IMAGES), network(IMAGES).flatten(1), atol=1e-5)
