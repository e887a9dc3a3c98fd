from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from edgeclean.devices.profile_files import generations, profile_names
from edgeclean.devices.targets import (
    CONVERTERS,
    PRECISION_BITS,
    list_targets,
    load_target,
    require,
)
from edgeclean.errors import UsageError
from edgeclean.files.schema import validator
from exporters import EXPORTERS
from exporters.onnx_exporter import OPSETS

EVERY_TARGET = [
    pytest.param(name, jetpack, id=f"{name}-{jetpack}")
    for name in profile_names()
    for jetpack in (load_target(name).jetpacks or (None,))
]


def test_every_promised_target_is_there() -> None:
    assert [target.name for target in list_targets()] == [
        *("android", "cpu", "intel-cpu", "raspberry-pi-4", "raspberry-pi-5"),
        *("agx-orin", "agx-xavier", "jetson", "jetson-nano", "orin-nano", "orin-nx"),
        *("thor", "tx2", "xavier-nx"),
        *("rtx", "rtx-20", "rtx-30", "rtx-40", "rtx-50"),
        *("hailo-8", "hailo-8l", "rk3566", "rk3588"),
        *("cortex-m", "esp32-p4", "esp32-s3", "stm32"),
    ]


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_fits_the_schema_and_every_fact_has_a_source(name: str) -> None:
    folder = resources.files("edgeclean").joinpath("devices", "profiles")
    profile = tomllib.loads(folder.joinpath(f"{name}.toml").read_text("utf-8"))
    assert list(validator("target").iter_errors(profile)) == []
    assert profile["name"] == name
    assert set(profile.get("jetpacks", {"value": []})["value"]) <= {
        generation["name"] for generation in generations()
    }


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(validator("target").schema)


@pytest.mark.parametrize(("name", "jetpack"), EVERY_TARGET)
def test_what_a_target_asks_for_is_within_its_own_reach_and_ours(
    name: str, jetpack: str | None
) -> None:
    target = load_target(name, jetpack=jetpack)
    require(target, precision=target.default_precision, opset=target.opset)
    assert target.opset in OPSETS
    assert set(target.rank_multiples) == set(target.precisions) <= set(PRECISION_BITS)
    assert "fp32" in target.precisions
    assert target.rank_multiple() == target.rank_multiples[target.default_precision]
    assert bool(target.dla_cores) == bool(target.dla_rank_multiples)
    assert all(target.sources.values())
    assert str(target.opset) in target.description
    json.dumps(asdict(target))


@pytest.mark.parametrize(
    ("name", "release", "generation", "tensorrt", "opset"),
    [
        ("jetson-nano", "4.6", "4.6", ">=8.0,<8.1", 13),
        ("jetson-nano", "4.6.1", "4.6.1-4.6.6", ">=8.2,<8.3", 13),
        ("tx2", None, "4.6.1-4.6.6", ">=8.2,<8.3", 13),
        ("xavier-nx", "5.1.6", "5.1", ">=8.5,<8.6", 17),
        ("agx-orin", "5.0.2", "5.0", ">=8.4,<8.5", 17),
        ("orin-nano", "6.0", "6.0", ">=8.6,<8.7", 17),
        ("orin-nano", "6.0.0", "6.0", ">=8.6,<8.7", 17),
        ("jetson", None, "6.1-6.2", ">=10.3,<10.4", 17),
        ("orin-nx", "6.2.2", "6.1-6.2", ">=10.3,<10.4", 17),
        ("orin-nx", "6.1-6.2", "6.1-6.2", ">=10.3,<10.4", 17),
        ("thor", "7.1", "7.0-7.1", ">=10.13,<10.14", 17),
        ("agx-orin", "7.2.1", "7.2", ">=10.16,<10.17", 17),
        ("agx-orin", "7.2.2", "7.2.2", ">=11.4.1,<12", 17),
        ("agx-orin", "7.10", "7.2.2", ">=11.4.1,<12", 17),
    ],
)
def test_a_release_of_jetpack_decides_tensorrt_and_opset(
    name: str, release: str | None, generation: str, tensorrt: str, opset: int
) -> None:
    target = load_target(name, jetpack=release)
    assert (target.jetpack, target.tensorrt, target.opset) == (generation, tensorrt, opset)


@pytest.mark.parametrize(
    ("name", "release"),
    [
        *(("jetson-nano", "5.1"), ("xavier-nx", "6.1"), ("thor", "6.2"), ("orin-nx", "7.2.2")),
        *(("orin-nx", "6"), ("orin-nx", "6.x"), ("orin-nx", "6.3")),
    ],
)
def test_a_release_that_a_module_does_not_have_is_refused(name: str, release: str) -> None:
    with pytest.raises(UsageError, match=f"JetPack {release} does not exist for {name}"):
        load_target(name, jetpack=release)


@pytest.mark.parametrize("number", ["9" * 5000, "0" * 5000])
def test_a_release_of_any_length_is_refused_in_a_few_words(number: str) -> None:
    with pytest.raises(UsageError, match="does not exist for orin-nx") as refused:
        load_target("orin-nx", jetpack=f"5.{number}")
    assert len(str(refused.value)) < 400


def test_a_refused_release_is_answered_by_those_that_are_taken() -> None:
    with pytest.raises(UsageError, match=r"5\.1\.9 .*taken are the releases .*5\.1 to 5\.1\.6, "):
        load_target("orin-nano", jetpack="5.1.9")


def test_jetson_says_what_it_stands_for() -> None:
    alias, meant = load_target("jetson"), load_target("orin-nano")
    assert alias.alias_of == "orin-nano"
    assert "orin-nano" in alias.title
    own = {"name", "title", "alias_of"}
    assert {k: v for k, v in asdict(alias).items() if k not in own} == {
        k: v for k, v in asdict(meant).items() if k not in own
    }


@pytest.mark.parametrize(
    ("name", "jetpack", "cores"),
    [
        ("agx-orin", "5.1", 2),
        ("agx-orin", "6.1", 2),
        ("agx-orin", "7.2", 0),
        ("agx-orin", "7.2.2", 2),
        ("orin-nx", "6.2", 2),
        ("orin-nx", "7.2", 0),
        ("orin-nano", "6.2", 0),
        ("xavier-nx", "5.1", 2),
        ("thor", "7.0", 0),
        ("thor", "7.2.2", 0),
        ("jetson-nano", "4.6", 0),
    ],
)
def test_dla_comes_and_goes_with_the_version(name: str, jetpack: str, cores: int) -> None:
    assert load_target(name, jetpack=jetpack).dla_cores == cores


@pytest.mark.parametrize(
    ("name", "jetpack", "asked", "message"),
    [
        (
            "agx-orin",
            None,
            {"precision": "fp8"},
            r"8\.7\).*use int8, or a target with fp8 \(thor, rtx",
        ),
        ("jetson-nano", None, {"precision": "int8"}, "use fp16, or a target with int8"),
        ("cpu", None, {"precision": "fp16"}, "use fp32, or a target with fp16"),
        ("cpu", None, {"precision": "half"}, "'half' is not known; known are fp32"),
        (
            "orin-nx",
            "5.1",
            {"opset": 20},
            r"reads opset 7 to 17; 20 was asked: use 17, or JetPack 6\.1",
        ),
        ("jetson-nano", None, {"opset": 17}, "reads opset 7 to 13; 17 was asked: use 13$"),
        (
            "agx-orin",
            "7.2.2",
            {"opset": 8},
            "reads opset 9 to 25; 8 was asked: use 9, or JetPack 5",
        ),
        ("thor", None, {"dla": True}, "the SoC has none.*; DLA is on agx-orin with JetPack 7"),
        (
            "agx-orin",
            "7.2",
            {"dla": True},
            r"TensorRT after 10\.7.*DLA is on agx-orin with JetPack 7\.2\.2",
        ),
        ("orin-nx", "7.2", {"dla": True}, r"DLA is on orin-nx with JetPack 6\.1-6\.2, orin-nx"),
        ("cpu", None, {"dla": True}, "it is not a Jetson"),
        (
            "agx-orin",
            None,
            {"dla": True, "precision": "fp32"},
            "fp16 and int8; fp32 was asked: use fp16",
        ),
    ],
)
def test_the_impossible_is_refused_with_the_nearest_possible(
    name: str, jetpack: str | None, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        require(load_target(name, jetpack=jetpack), **asked)  # type: ignore[arg-type]


def test_the_possible_is_not_refused() -> None:
    require(load_target("agx-orin"), precision="int8", opset=20, dla=True)
    require(load_target("rtx-50"), precision="fp4")
    require(load_target("thor"), precision="fp8", opset=20)


def test_rank_multiples_are_those_of_precision_and_accelerator() -> None:
    orin = load_target("agx-orin")
    assert [orin.rank_multiple(precision) for precision in ("fp32", "fp16", "int8")] == [4, 8, 32]
    assert orin.rank_multiple("fp16", dla=True) == 16
    assert load_target("cpu").rank_multiple() == 8
    with pytest.raises(UsageError):
        load_target("cpu").rank_multiple("fp8")
    with pytest.raises(UsageError):
        load_target("thor").rank_multiple("fp16", dla=True)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean orin-nano"):
        load_target("orin-nanoo")
    with pytest.raises(UsageError, match=r"'zzz' is not known; known are agx-orin"):
        load_target("zzz")
    with pytest.raises(UsageError, match="no target was named"):
        load_target()
    for name in ("../profiles/cpu", "gpu"):  # the second is a table of facts, not a device
        with pytest.raises(UsageError, match="not known"):
            load_target(name)


def test_a_device_without_jetpack_refuses_one() -> None:
    with pytest.raises(UsageError, match="cpu has no JetPack"):
        load_target("cpu", jetpack="6.1")


OWN_BOARD = """
name = "our-board"
title = "Our carrier board"
extends = "orin-nx"
memory_gb = { value = [16], source = "our bill of materials" }

[rank_multiples]
value = { fp32 = 8, tf32 = 8, bf16 = 16, fp16 = 16, int8 = 32 }
source = "measured here"
"""


def test_a_file_of_the_user_extends_a_shipped_target(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(OWN_BOARD)
    target = load_target(target_file=path, jetpack="5.1")
    assert target == load_target("our-board", target_file=path, jetpack="5.1")
    assert (target.name, target.memory_gb, target.rank_multiple("fp16")) == ("our-board", (16,), 16)
    assert (target.module, target.dla_cores, target.opset_max) == ("orin-nx", 2, 17)
    assert target.sources["memory_gb"] == "our bill of materials"
    with pytest.raises(UsageError, match=r"'cpu' was asked and board.toml describes 'our-board'"):
        load_target("cpu", target_file=path)


def test_what_extends_an_alias_is_not_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text('name = "x"\ntitle = "x"\nextends = "jetson"')
    target = load_target(target_file=path)
    assert (target.module, target.alias_of) == ("orin-nano", None)


def test_a_shipped_profile_can_be_copied_as_a_file_of_the_user(tmp_path: Path) -> None:
    folder = resources.files("edgeclean").joinpath("devices", "profiles")
    for name in ("cpu", "orin-nx", "rtx-40"):
        path = tmp_path / "copy.toml"
        path.write_bytes(folder.joinpath(f"{name}.toml").read_bytes())
        assert load_target(target_file=path) == load_target(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not a TOML file"),
        ("\xff", "not a TOML file"),
        ('title = "x"', "'name' is a required property"),
        ('name = "x"\ntitle = "x"\nopsett = 3', "'opsett' was unexpected"),
        ('name = "x"\ntitle = "x"\nopset = { value = 17 }', "'source' is a required property"),
        ('name = "x"\ntitle = "x"\nopset = { value = "17", source = "s" }', "opset.value"),
        ('name = "x"\ntitle = "x"', "does not say 'opset'"),
        ('name = "x"\ntitle = "x"\nextends = "nothing"', "'nothing' is not known"),
        (
            'name = "x"\ntitle = "x"\nextends = "cpu"\nopset = { value = 21, source = "s" }',
            "opset 21, outside of the 11 to 20",
        ),
        (
            'name = "x"\ntitle = "x"\nextends = "cpu"\n'
            'precisions = { value = ["fp32", "fp16"], source = "s" }',
            "each have a rank multiple",
        ),
        (
            'name = "x"\ntitle = "x"\nextends = "cpu"\n'
            'default_precision = { value = "fp16", source = "s" }',
            "computes in fp16 by default",
        ),
        (
            'name = "x"\ntitle = "x"\nextends = "cpu"\njetpacks = { value = ["9"], source = "s" }',
            "no generation of JetPack that x names is known",
        ),
        ('name = "x"\ntitle = "x"\nalias_of = "jetson"', "write extends = 'jetson'"),
    ],
)
def test_a_file_that_does_not_describe_a_target_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        load_target(target_file=path)


@pytest.mark.parametrize(
    ("base", "fact", "value", "message"),
    [
        ("cpu", "runtime", '"onnx-runtime"', "'onnx-runtime' is not one of"),
        ("cpu", "runtime", '"tensorrt"', "tensorrt, which needs a compute_capability"),
        ("cpu", "runtime", '"rknn"', "does not say 'converter_target'"),
        ("orin-nano", "runtime", '"ncnn"', "ncnn, which does not use a compute_capability"),
        ("rk3588", "runtime", '"ncnn"', "converter_target, which ncnn does not use"),
        ("orin-nano", "exporter", '"dynamo"', "'dynamo' is not one of"),
        ("orin-nano", "tensorrt", '"banana"', "'banana' does not match"),
        ("orin-nano", "memry_gb", "[8]", "nearest: memory_gb"),
    ],
)
def test_a_fact_that_nothing_could_use_is_refused(
    tmp_path: Path, base: str, fact: str, value: str, message: str
) -> None:
    path = tmp_path / "own.toml"
    head = f'name = "x"\ntitle = "x"\nextends = "{base}"\n'
    path.write_text(f'{head}{fact} = {{ value = {value}, source = "s" }}')
    with pytest.raises(UsageError, match=message):
        load_target(target_file=path)


def test_a_file_that_is_not_there_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_target(target_file=tmp_path / "none.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UsageError, match="larger than"):
        load_target(target_file=tmp_path / "huge.toml")


def test_a_chip_of_the_same_family_is_a_target_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    text = 'name = "rk3576"\ntitle = "Our board"\nextends = "rk3588"\n'
    chip = 'converter_target = { value = "%s", source = "the manual" }\n'
    file.write_text(text + chip % "rk3576", encoding="utf-8")
    own, shipped = load_target(target_file=file), load_target("rk3588")
    assert (own.converter_target, own.runtime) == ("rk3576", "rknn")
    assert own.operators == shipped.operators
    assert "Conv" in own.operators
    for bad in ("RK 3576", "x'; import os", "", "-rf"):
        file.write_text(text + chip % bad, encoding="utf-8")
        with pytest.raises(UsageError, match="converter_target"):
            load_target(target_file=file)
    file.write_text('name = "x"\ntitle = "x"\nconverter = "tvm"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="names the converter 'tvm'; known are rknn, hailo, st"):
        load_target(target_file=file)
    file.write_text('name = "x"\ntitle = "x"\nconverter = "hailo"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="does not say 'converter_target', the chip's name"):
        load_target(target_file=file)


def test_every_runtime_that_there_is_may_stand_in_a_file_and_no_other() -> None:
    schema = validator("target").schema["properties"]["runtime"]["properties"]["value"]
    assert {*schema["enum"]} == {*EXPORTERS, "tensorrt-rtx", *CONVERTERS}
    assert len(schema["enum"]) == len({*schema["enum"]})
