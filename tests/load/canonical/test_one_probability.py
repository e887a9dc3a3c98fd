"""Of a network that gives one probability, the logit before it is taken, or it is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from odd_networks import By, spec_of
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import converted
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError
from edgeclean.load.canonical.form import Form, stock_form
from edgeclean.load.limits import LoadLimits

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
FORMS = {
    "column": lambda m, x: m.a(x).sigmoid(),
    "row": lambda m, x: torch.special.expit(m.a(x))[:, 0],
    "squeezed": lambda m, x: functional.sigmoid(m.a(x)).squeeze(-1),
    "member": lambda m, x: {"features": x, "score": m.a(x).sigmoid().unsqueeze(2).flatten(1)},
}


def form_of(module: nn.Module) -> Form:
    return stock_form(module.eval(), spec_of(classes=2), LoadLimits())


def plain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)),
    )


@torch.no_grad()
def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_the_logit_before_the_sigmoid_is_taken(form: str) -> None:
    """Taken for a logit, the probability would put every image into the second class."""
    network = By(FORMS[form], a=plain()).eval()
    made = form_of(network)
    assert close(made.module(IMAGES)[:, 1:], network.a(IMAGES))
    assert close(made.module(IMAGES)[:, 0], torch.zeros(3))
    assert "sigmoid" in str(made.notes["written_out"])
    assert not any("sigmoid" in name for name, _ in made.module.named_modules())
    assert not made.module.training


def test_a_sigmoid_that_others_take_too_is_left_to_them() -> None:
    def gated(module: By, x: Tensor) -> Tensor:
        gate = module.a(x).sigmoid()
        return (gate * module.b(x)).sigmoid()

    network = By(gated, a=plain(), b=plain()).eval()
    made = form_of(network)
    assert close(made.module(IMAGES)[:, 1:].sigmoid(), network(IMAGES))
    assert close(made.module(IMAGES)[:, 1:], network.a(IMAGES).sigmoid() * network.b(IMAGES))


def test_a_logit_that_is_made_of_a_sigmoid_stays() -> None:
    network = By(lambda m, x: m.a(x).sigmoid() * 3 - 1, a=plain()).eval()
    assert close(form_of(network).module(IMAGES)[:, 1:], network(IMAGES))


def test_a_probability_of_another_making_is_refused() -> None:
    with pytest.raises(InputRejectedError, match="between 0 and 1 for every image") as caught:
        form_of(By(lambda m, x: 1 / (1 + torch.exp(-m.a(x))), a=plain()))
    assert len(str(caught.value).splitlines()) == 1


def test_a_logit_that_plain_images_leave_between_0_and_1_is_none() -> None:
    network = plain().eval()
    with torch.no_grad():
        network[-1].weight.mul_(0.1)
        network[-1].bias.fill_(0.5)
    plain_images = torch.cat([IMAGES, torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    assert bool(((network(plain_images) - 0.5).abs() < 0.5).all())
    assert close(form_of(network).module(IMAGES)[:, 1:], network(IMAGES))


def test_an_onnx_graph_that_ends_in_a_sigmoid_gives_its_logit() -> None:
    """As those of Keras do."""
    weight = np.random.default_rng(0).normal(size=(1, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    weights = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "g", [given], [answer], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    network = converted(model.SerializeToString())
    made = form_of(network).module(IMAGES)
    assert close(made.softmax(1)[:, 1:], network(IMAGES))
