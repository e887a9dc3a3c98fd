"""A folder as the Hugging Face hub gives it for timm: strict about a stranger's config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_checkpoint import CODE, SPEC, assert_equal_tensors, saved, tiny

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.load import hub_folder
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.hub_folder import files_of, stated_by, weights_of
from edgeclean.load.model_file import spec_from_options

WEIGHTS = tiny().state_dict()
# As timm writes it (`timm.models.save_for_hf`).
CONFIG: dict[str, Any] = {
    "architecture": "mobilenetv3_small_050",
    "num_classes": 2,
    "num_features": 1024,
    "global_pool": "avg",
    "pretrained_cfg": {
        "tag": "lamb_in1k",
        "custom_load": False,
        "input_size": [3, 4, 4],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
    "label_names": ["cat", "dog"],
}
FLAT = {**CONFIG, **CONFIG["pretrained_cfg"], "num_classes": 2}
del FLAT["pretrained_cfg"]


def folder_of(tmp_path: Path, config: object = CONFIG, name: str = "model.safetensors") -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    contents = saved(WEIGHTS) if name.endswith("bin") else safetensors.torch.save(WEIGHTS)
    (folder / name).write_bytes(contents)
    return folder


@pytest.mark.parametrize("config", [CONFIG, FLAT], ids=["nested", "flat"])
def test_config_says_all_that_a_model_file_does(config: object, tmp_path: Path) -> None:
    spec = spec_from_options(checkpoint=folder_of(tmp_path, config))
    assert spec.architecture == "timm:mobilenetv3_small_050"
    assert (spec.input_shape, spec.classes) == ((3, 4, 4), 2)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_options_win_and_the_file_need_not_say_what_they_do(tmp_path: Path) -> None:
    config = {**CONFIG, "num_classes": "many", "model_args": {"depth": 3}}
    folder = folder_of(tmp_path, {**config, "architecture": 3})
    spec = spec_from_options(checkpoint=folder, arch="net.py:tiny", classes=2, mean="0,0,0")
    assert (spec.architecture, spec.classes, spec.mean) == ("net.py:tiny", 2, (0.0, 0.0, 0.0))
    assert spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_loaded_as_its_weights(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, name=name)
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    spec = spec_from_options(checkpoint=folder, arch="net.py:tiny")
    loaded = load_checkpoint(folder, spec, code_folder=tmp_path)
    alone = load_checkpoint(folder / name, spec, code_folder=tmp_path)
    assert_equal_tensors(loaded.module.state_dict(), WEIGHTS)
    assert loaded.source_sha256 == alone.source_sha256
    assert files_of(folder) == [folder / name, folder / "config.json"]
    assert files_of(folder / name) == [folder / name]


def test_safetensors_win_over_a_pickle(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert weights_of(folder) == folder / "model.safetensors"


BAD: dict[str, tuple[object, str]] = {
    "list": ([1], "config.json: not a JSON object"),
    "no object within": ({"pretrained_cfg": 3}, "config.json: pretrained_cfg is no object"),
    "classes": ({**CONFIG, "num_classes": 0}, "config.json: num_classes is 0; it must be a whole"),
    "truth": ({**CONFIG, "num_classes": True}, "config.json: num_classes is True"),
    "sides": ({**FLAT, "input_size": [3, 4, 10**9]}, "config.json: input_size is "),
    "mean": ({**FLAT, "mean": "0.5"}, "config.json: mean is '0.5'; it must be a list"),
    "deviation": ({**FLAT, "std": [1, 1, 0]}, "config.json: std is [1, 1, 0]; it must be"),
    "architecture": ({**CONFIG, "architecture": 3}, "config.json: architecture is 3"),
    "arguments": (
        {**CONFIG, "model_args": {"width": 2}},
        "config.json: model_args (width) make another network than the architecture's name says",
    ),
    "arguments of no kind": ({**CONFIG, "model_args": [1]}, "model_args (no object) make another"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused_by_its_key(case: str, tmp_path: Path) -> None:
    config, message = BAD[case]
    with pytest.raises(InputRejectedError) as caught:
        spec_from_options(checkpoint=folder_of(tmp_path, config))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("{", '{"mean": NaN}', "[" * 100_000, "\xff", '{"std": Infinity}', "\x1b[31m"),
        *('{"mean": [0], "mean": [1]}', "[" + "[]," * 2**20 + "[]]"),
    ],
)
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(InputRejectedError, match=r"config\.json: not a JSON file") as caught:
        spec_from_options(checkpoint=folder)
    assert str(caught.value).isprintable()


def test_a_config_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path)
    size = (folder / "config.json").stat().st_size
    monkeypatch.setattr(hub_folder, "MAX_CONFIG_BYTES", size)
    assert stated_by(folder)
    monkeypatch.setattr(hub_folder, "MAX_CONFIG_BYTES", size - 1)
    with pytest.raises(InputRejectedError, match=f"larger than {size - 1} bytes"):
        stated_by(folder)


@pytest.mark.parametrize("name", ["hf-hub:x/y", "../x", "a b", "x" * 300, "RESNET18"])
def test_no_architecture_but_a_name_of_timm(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {**CONFIG, "architecture": name})
    spec = spec_from_options(checkpoint=folder)
    with pytest.raises(UsageError, match="is no name of a network of timm"):
        load_checkpoint(folder, spec)


def test_folders_without_weights_or_config(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputRejectedError, match=r"a folder without model\.safetensors or"):
        weights_of(empty)
    (empty / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputRejectedError, match="weights are in several parts"):
        weights_of(empty)
    folder = folder_of(tmp_path, None)
    with pytest.raises(UsageError, match="give --arch, --input-shape, --classes, --mean, --std"):
        spec_from_options(checkpoint=folder)
    assert files_of(folder) == [folder / "model.safetensors"]


@pytest.mark.parametrize(
    ("number", "hint"), [("00001-of-00003", "it is one of 3 parts"), ("00001-of-00001", "")]
)
def test_one_part_of_several_is_told_as_that(number: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    part = tmp_path / f"model-{number}.safetensors"
    some = {name: one for name, one in WEIGHTS.items() if name.startswith("0.")}
    part.write_bytes(safetensors.torch.save(some))
    with pytest.raises(InputRejectedError, match="missing") as refused:
        load_checkpoint(part, SPEC, code_folder=tmp_path)
    assert ("parts" in str(refused.value)) == bool(hint)
    assert hint in str(refused.value)


def test_a_network_of_timm_with_what_timm_says_of_it(tmp_path: Path) -> None:
    try:
        import timm
    except Exception:  # noqa: BLE001 - a torchvision of another PyTorch raises RuntimeError
        pytest.skip("needs timm, which does not import without a torchvision of this PyTorch")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=5).eval()
    stated = {
        key: entry
        for key, entry in model.pretrained_cfg.items()
        if isinstance(entry, str | int | float | bool | list | tuple)
    }
    config = {"architecture": model.pretrained_cfg["architecture"], "num_classes": 5}
    folder = folder_of(tmp_path, {**config, "pretrained_cfg": stated})
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    spec = spec_from_options(checkpoint=tmp_path / "hub")
    assert spec.classes == 5
    loaded = load_checkpoint(tmp_path / "hub", spec)
    images = torch.rand(1, *spec.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), model(images), rtol=1e-4, atol=1e-4)
