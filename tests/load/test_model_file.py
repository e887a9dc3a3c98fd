"""model.toml and options: what is right comes through exactly, what is wrong is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from zoo import MODEL_FILES, ZOO_NAMES

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.load.model_file import MAX_FILE_BYTES, read_model_file, spec_from_options
from edgeclean.networks.state import ModelSpec

GOOD = """
architecture = "resnet20"
input-shape = [3, 32, 24]
classes = 10
mean = [0.5, 0, 0.25]
std = [0.2, 1, 0.3]
"""
SPEC = ModelSpec(
    architecture="resnet20",
    input_shape=(3, 32, 24),
    classes=10,
    mean=(0.5, 0.0, 0.25),
    std=(0.2, 1.0, 0.3),
)


def written(folder: Path, text: str) -> Path:
    path = folder / "model.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_arrives(tmp_path: Path) -> None:
    assert read_model_file(written(tmp_path, GOOD)) == SPEC


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_files_of_the_zoo_are_good(name: str) -> None:
    assert read_model_file(MODEL_FILES / f"{name}.toml").classes == 10


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes = 10", "clases = 10", "unknown key 'clases'"),
        ("classes = 10", "", "missing classes"),
        ("classes = 10", "classes = 1", "classes is 1; it must be a whole number in 2"),
        ("classes = 10", "classes = true", "classes is True"),
        ("classes = 10", "classes = 10.0", "classes is 10.0"),
        (
            "classes = 10",
            "classes = 65537",
            "classes is 65537; it must be a whole number in 2..65536",
        ),
        ('"resnet20"', "20", "architecture is 20;"),
        ('"resnet20"', '""', "architecture is ''"),
        ('"resnet20"', '"a\\u001Bb"', "architecture is"),
        ("[3, 32, 24]", "[32, 24]", "input-shape is [32, 24]; it must be three whole numbers"),
        ("[3, 32, 24]", "[3, 0, 24]", "input-shape is"),
        ("[3, 32, 24]", "[3, 4097, 24]", "input-shape is"),
        ("[3, 32, 24]", "[3, 32, true]", "input-shape is"),
        ("[3, 32, 24]", "[1, 32, 24]", "mean has 3 numbers for 1 channel;"),
        ("[0.2, 1, 0.3]", "[0.2, 1]", "std has 2 numbers for 3 channels"),
        ("[0.2, 1, 0.3]", "[0.2, 0, 0.3]", "std is [0.2, 0, 0.3]; it must be a list of finite"),
        ("[0.2, 1, 0.3]", "[0.2, -1, 0.3]", "std is"),
        ("[0.5, 0, 0.25]", "[0.5, true, 0.25]", "mean is"),
        ("[0.5, 0, 0.25]", "[0.5, nan, 0.25]", "mean is"),
        ("[0.5, 0, 0.25]", "[0.5, inf, 0.25]", "mean is"),
        ("[0.5, 0, 0.25]", '[0.5, "0", 0.25]', "mean is"),
        ("[0.5, 0, 0.25]", "0.5", "mean is"),
        (
            "[0.5, 0, 0.25]",
            "[123.7, 116.3, 103.5]",
            "divide mean and std of pixels in [0, 255] by 255",
        ),
        ("[0.2, 1, 0.3]", "[58.4, 57.1, 57.4]", "divide mean and std of pixels in [0, 255] by 255"),
        ("classes = 10", "classes = 10\nclasses = 11", "not a TOML file"),
        ("classes = 10", "classes = [" + "[" * 5000, "not a TOML file"),
        ("classes = 10", "#" * MAX_FILE_BYTES, "larger than"),
    ],
)
def test_bad_file_is_refused_in_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputRejectedError) as caught:
        read_model_file(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputRejectedError, match="cannot be read"):
        read_model_file(tmp_path / "none.toml")
    (tmp_path / "model.toml").write_bytes(b"classes = \xff")
    with pytest.raises(InputRejectedError, match="not a TOML file"):
        read_model_file(tmp_path / "model.toml")


ALL_OPTIONS = {
    "arch": "resnet20",
    "input_shape": "3x32x24",
    "classes": 10,
    "mean": "0.5,0,0.25",
    "std": "0.2, 1, 0.3",
}


def test_options_alone_are_enough() -> None:
    assert spec_from_options(**ALL_OPTIONS) == SPEC  # type: ignore[arg-type]


def test_option_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert spec_from_options(model_file=path) == SPEC
    expected = dataclasses.replace(SPEC, classes=43)
    assert spec_from_options(model_file=path, classes=43) == expected


def test_file_may_leave_out_what_the_options_give(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("classes = 10", ""))
    with pytest.raises(UsageError, match=r"give --classes, or"):
        spec_from_options(model_file=path)
    assert spec_from_options(model_file=path, classes=10) == SPEC


def test_missing_options_are_all_named() -> None:
    with pytest.raises(UsageError, match="give --arch, --input-shape, --classes, --mean, --std"):
        spec_from_options()


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("input_shape", "3x32", "CHANNELSxHEIGHTxWIDTH"),
        ("input_shape", "3x32xa", "CHANNELSxHEIGHTxWIDTH"),
        ("input_shape", "3x32x-1", "CHANNELSxHEIGHTxWIDTH"),
        ("input_shape", "3x32x99999999999999999999", "input-shape is"),
        ("mean", "0.5,0.5", "mean has 2 numbers"),
        ("mean", "a,b,c", "--mean is 'a,b,c'"),
        ("std", "1,1,nan", "--std is"),
        ("std", "1,1,0", "above zero"),
        ("classes", 0, "classes is 0"),
    ],
)
def test_malformed_option_is_a_usage_error(option: str, text: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec_from_options(**{**ALL_OPTIONS, option: text})  # type: ignore[arg-type]


def test_bad_file_is_not_mended_by_options(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("classes = 10", "classes = 0"))
    with pytest.raises(InputRejectedError, match="classes is 0"):
        spec_from_options(model_file=path, classes=10)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("input_shape", "1x32x24", "--mean|mean has 3 numbers for 1 channel;.*--input-shape"),
        ("mean", "0.5", "^--mean has 1 number for 3 channels.*model.toml: input-shape"),
        ("std", "1,1,0", "^--std is"),
        ("classes", 0, "^--classes is 0; it must be a whole number in 2"),
        pytest.param(
            "classes", 10**5000, r"^--classes is a number of \d+ bits; it must", id="huge"
        ),
        ("arch", "a\x1bb", "^--arch is"),
    ],
)
def test_a_bad_option_is_blamed_itself_and_not_the_file(
    option: str, text: object, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, GOOD)
    with pytest.raises(UsageError, match=message) as caught:
        spec_from_options(model_file=path, **{option: text})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300 + len(str(path))
