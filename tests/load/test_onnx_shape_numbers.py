"""Few numbers that hang on shapes alone are computed; sides that are free are moved, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx_graphs import imported
from onnx_middles import CLASSES, SIDE, network, node

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.shape_numbers import MOST, ShapeNumbers

NUMBERS = {
    **{"zero": [0], "one": [1], "two": [2], "three": [3], "minus": [-1], "pair": [2, 2]},
    "many": list(range(MOST)),
    "none": [],
    "huge": [2**20, 2**20],
    "row": np.arange(MOST).reshape(1, -1),
    "column": np.arange(MOST).reshape(-1, 1),
}
SIDES = ("n", 3, 8, "w")


def known(*nodes: NodeProto, opset: int = 17) -> ShapeNumbers:
    """What is known of nodes behind the shape "s" of an image."""
    graph = helper.make_graph(
        [helper.make_node("Shape", ["image"], ["s"]), *nodes],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SIDES)],
        [],
        [numpy_helper.from_array(np.array(one, np.int64), name) for name, one in NUMBERS.items()],
    )
    return ShapeNumbers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "sides"),
    [
        ("Gather", ["s", "pair"], {}, [8, 8]),
        ("Gather", ["s", "zero"], {}, [-1]),
        ("Slice", ["s", "zero", "two", "zero", "one"], {}, [-1, 3]),
        ("Concat", ["s", "minus"], {"axis": 0}, [-1, 3, 8, -1, -1]),
        ("Reshape", ["s", "pair"], {}, [[-1, 3], [8, -1]]),
        ("Unsqueeze", ["s", "zero"], {}, [[-1, 3, 8, -1]]),
        ("Shape", ["image"], {"start": 1, "end": 3}, [3, 8]),
        ("Sub", ["zero", "three"], {}, [-3]),
        ("ConstantOfShape", ["pair"], {}, [[0, 0], [0, 0]]),
        ("Identity", ["none"], {}, []),
        # Nothing is computed of a free side, nor does it say where others are.
        ("Mul", ["s", "two"], {}, None),
        ("Gather", ["many", "s"], {}, None),
        ("Size", ["image"], {}, None),
        ("Cast", ["s"], {"to": TensorProto.BOOL}, None),
        ("ConstantOfShape", ["s"], {}, None),
        # Nothing that is large is made.
        ("ConstantOfShape", ["many"], {}, None),
        ("ConstantOfShape", ["huge"], {}, None),
        ("Mul", ["row", "column"], {}, None),
        ("Concat", ["many", "one"], {"axis": 0}, None),
        ("Tile", ["one", "two"], {}, None),
    ],
)
def test_sides_are_moved_and_numbers_computed(
    kind: str, inputs: list[str], attributes: dict[str, Any], sides: list[int] | None
) -> None:
    numbers = known(helper.make_node(kind, inputs, ["made"], **attributes))
    found, whole = numbers.sides("made"), numbers.of("made")
    assert sides is None if found is None else np.array_equal(found, sides or [])
    free = found is not None and kind in ("Concat", "Reshape", "Unsqueeze", "Slice")
    free |= inputs == ["s", "zero"]
    assert (whole is None) is (free or sides is None)


def test_a_value_is_computed_once_however_often_it_is_read() -> None:
    """Computed anew for each reader, these take 4 ** 100 steps."""
    nodes = [helper.make_node("Concat", ["none"] * 4, ["v0"], axis=0)]
    nodes += [
        helper.make_node("Concat", [f"v{level}"] * 4, [f"v{level + 1}"], axis=0)
        for level in range(100)
    ]
    found = known(*nodes).of("v100")
    assert found is not None
    assert found.size == 0


@pytest.mark.parametrize("where", ["number", "graph"])
def test_numbers_in_other_files_and_graphs_are_not_read(where: str) -> None:
    made = helper.make_node("ConstantOfShape", ["one"], ["made"])
    tensor = helper.make_tensor("value", TensorProto.INT64, [1], [0])
    if where == "number":
        tensor.data_location = TensorProto.EXTERNAL
        made.attribute.append(helper.make_attribute("value", tensor))
    else:
        made.attribute.append(helper.make_attribute("value", helper.make_graph([], "g", [], [])))
    assert known(made).of("made") is None


def test_a_constant_in_a_file_of_the_current_folder_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(8))
    tensor = TensorProto(data_type=TensorProto.INT64, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    assert np.array_equal(numpy_helper.to_array(tensor), [0])  # onnx itself reads it
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    assert known(constant, helper.make_node("Identity", ["c"], ["made"])).of("made") is None


def test_a_branch_with_numbers_in_another_file_is_not_taken() -> None:
    """It was taken after such numbers had been looked for, and they were lost."""
    tensor = helper.make_tensor("k", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    branches = {
        name: helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(name)])
        for name, nodes in (
            ("then_branch", [node("Constant", [], ["k"], value=tensor)]),
            ("else_branch", [node("Identity", ["r"], ["else_branch"])]),
        )
    }
    branches["then_branch"].node.append(node("Add", ["r", "k"], ["then_branch"]))
    middle = (
        node("Size", ["r"], ["size"]),
        node("Greater", ["size", "zero"], ["taken"]),
        node("If", ["taken"], ["m"], **branches),
    )
    shape, out = (1, 3, SIDE, SIDE), (1, CLASSES)
    model = network(middle=middle, numbers={"zero": 0}, shape=shape, out=out)
    with pytest.raises(InputRejectedError, match="operator If is not supported; control flow"):
        imported(model.SerializeToString())
