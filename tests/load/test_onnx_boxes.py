"""What code writes into a part of a tensor is joined with what lies around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx import NodeProto
from onnx_graphs import TOLERANCE, by_runtime, images, imported
from onnx_middles import CHANNELS, CLASSES, SIDE, exported, network, node
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError

Write = Callable[[Tensor, Tensor], Tensor]


def added(planes: Tensor, others: Tensor) -> Tensor:
    planes[:, 0:5] += others[:, 3:]
    return planes


def cleared(planes: Tensor, _others: Tensor) -> Tensor:
    planes[:, :, 2:4, 1:-1] = 0
    return planes


def shifted(planes: Tensor, others: Tensor) -> Tensor:
    made = torch.zeros_like(planes)
    made[:, :4, :, 1:] = planes[:, :4, :, :-1]
    made[:, 4:] = others[:, 4:]
    return made


def one_plane(planes: Tensor, others: Tensor) -> Tensor:
    planes[:, -1] = others[:, 0]
    return planes


def twice(planes: Tensor, others: Tensor) -> Tensor:
    return cleared(added(planes, others), others)


def scattered(planes: Tensor, _others: Tensor) -> Tensor:
    planes[:, ::2] = 0
    return planes


class Writing(nn.Module):
    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write
        self.first, self.second = nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        planes = self.write(self.first(pixels), self.second(pixels))
        return self.head(planes.relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("write", [added, cleared, shifted, one_plane, twice])
def test_a_part_is_written(write: Write, free: bool) -> None:
    torch.manual_seed(0)
    module = Writing(write).eval()
    read, shape, _, _ = imported(exported(module, free=free))
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(read(pixels), module(pixels), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_single_places_are_refused_with_a_way() -> None:
    module = Writing(scattered).eval()
    with pytest.raises(InputRejectedError, match=r"ScatterND node .*torch\.cat"):
        imported(exported(module, free=False))


def scatter(at: np.ndarray, *, reduction: str = "none") -> tuple[tuple[NodeProto, ...], np.ndarray]:
    kind = {} if reduction == "none" else {"reduction": reduction}
    middle = (
        node("Slice", ["r", "low", "high", "axis"], ["part"]),
        node("ScatterND", ["r", "at", "part"], ["m"], **kind),
    )
    return middle, at


GRID = np.stack(np.meshgrid([0], [2, 3, 4], indexing="ij"), -1)  # of a batch of one


@pytest.mark.parametrize(
    ("at", "reduction", "read"),
    [
        (GRID, "none", True),
        (GRID - [0, CHANNELS], "none", True),  # counted from behind
        (GRID[:, ::-1], "none", False),  # the planes in another order
        (GRID[:, [0, 0, 2]], "none", False),  # one of them twice
        (GRID, "add", False),
        (np.stack(np.meshgrid([0, 0], [2, 3, 4], indexing="ij"), -1), "none", False),
    ],
)
def test_only_a_box_in_its_order_is_written(at: np.ndarray, reduction: str, read: bool) -> None:
    middle, at = scatter(at, reduction=reduction)
    numbers = {"at": at, "low": [0], "high": [3], "axis": [1]}
    model = network(middle=middle, numbers=numbers, shape=(1, 3, SIDE, SIDE), out=(1, CLASSES))
    contents = model.SerializeToString()
    if not read:
        with pytest.raises(InputRejectedError, match="ScatterND node"):
            imported(contents)
        return
    got, shape, _, _ = imported(contents)
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(
            got(pixels), by_runtime(contents, pixels), rtol=TOLERANCE, atol=TOLERANCE
        )
