"""No wrong type in a manifest gets past its schema into code that takes it for another.

Every place of a manifest gets every other type in turn; what the schema lets through is then read
as each command reads it.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_files import make_manifest_fit
from tiny_networks import tiny_contents, tiny_network

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.embed import EmbedSettings, _header
from edgeclean.bundle.kit import kit_files, shipped_kit
from edgeclean.bundle.remote_bench import _files_to_send
from edgeclean.bundle.sign import sign_bundle
from edgeclean.bundle.signing import Signer
from edgeclean.bundle.verify import VerifiedBundle, open_bundle
from edgeclean.errors import EdgecleanError, InputRejectedError
from exporters.onnx_exporter import export_onnx
from exporters.tensorrt_exporter import EngineSettings

STRANGE = [
    *(None, True, False, 0, -1, 1.5, 5.0, 10**30, 10**300, "", "fp16", "a\nb", "x" * 10_000),
    *([], ["fp32"], [[[]]], {}, {"format": 3}, {"model.onnx": {}}),
]
TARGET = {"name": "orin-nano", "compute_capability": "8.7", "tensorrt": ">=10.3,<10.4"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> VerifiedBundle:
    contents = tiny_contents()
    contents = replace(
        contents,
        configuration={**contents.configuration, "precision": {"format": "fp32"}},
        target=TARGET,
        reproducible_files=kit_files(
            export_onnx(tiny_network()), TARGET, precision="fp32", batch=1
        ),
    )
    return open_bundle(write_bundle(tmp_path_factory.mktemp("b") / "bundle", contents).path)


def places(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a document, from its top."""
    yield place
    if isinstance(value, dict | list):
        steps = value.items() if isinstance(value, dict) else enumerate(value)
        for step, inner in steps:
            yield from places(inner, (*place, step))


def changed(manifest: Any, place: tuple[Any, ...], value: object) -> Any:
    if not place:
        return value
    manifest = copy.deepcopy(manifest)
    inner = manifest
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return manifest


def read_everywhere(opened: VerifiedBundle, manifest: Any) -> None:
    """As `embed`, `bench --device` and `build-engine` do."""
    header = _header(opened.model, manifest, "0" * 64, EmbedSettings(symbol="net")).decode()
    assert (
        len(re.findall(r"^#define NET_(?:CLASSES|HEIGHT|WIDTH|CHANNELS) \d+$", header, re.M)) == 4
    )
    for name in ("MEAN", "STD"):
        assert re.search(
            rf"^#define NET_{name} {{(-?[0-9.e+-]+f, ){{2}}-?[0-9.e+-]+f}}$", header, re.M
        )
    EngineSettings(precision=texts.precision_of(manifest))
    kit = json.loads(shipped_kit(manifest, b"")["kit/kit.json"])
    assert type(kit["batch"]) is int
    assert kit["networks"]["compressed"]["precision"] in ("fp32", "fp16", "bf16", "int8")
    assert isinstance(kit["compute_capability"], str | None)
    refusal = refusal_of(lambda: _files_to_send(replace(opened, manifest=manifest), print))
    assert "\n" not in refusal


def refusal_of(act: Callable[[], object]) -> str:
    """The message of the refusal, or nothing."""
    try:
        act()
    except EdgecleanError as error:
        return str(error)
    return ""


def test_every_type_in_every_place_is_refused_or_read(opened: VerifiedBundle) -> None:
    read_everywhere(opened, opened.manifest)
    refused = taken = 0
    for place in places(opened.manifest):
        for value in STRANGE:
            manifest = changed(opened.manifest, place, value)
            refusal = refusal_of(lambda manifest=manifest: checked(manifest))  # type: ignore[misc]
            assert refusal.isprintable()
            assert len(refusal) < 600
            if refusal:
                refused += 1
            else:
                read_everywhere(opened, manifest)
                taken += 1
    assert refused > 1000
    assert taken > 100  # settings and notes that nothing reads again


def checked(manifest: Any) -> None:
    """As `verify` reads it."""
    texts.check_manifest(texts.read_json(_written(manifest), texts.MANIFEST))


def _written(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


@pytest.mark.parametrize(
    "value", ["fp32", None, 3, ["fp32"], {}, {"format": None}, {"format": "x"}]
)
def test_a_precision_that_is_none_is_refused(opened: VerifiedBundle, value: object) -> None:
    manifest = changed(opened.manifest, ("configuration", "precision"), value)
    with pytest.raises(InputRejectedError, match="schema at configuration/precision"):
        texts.check_manifest(manifest)


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("numbers", [[0.5], [0.5] * 4])
def test_each_channel_has_its_number(
    opened: VerifiedBundle, key: str, numbers: list[float]
) -> None:
    """C fills a short array up with zeros: a std of 0."""
    manifest = changed(opened.manifest, ("model", key), numbers)
    with pytest.raises(InputRejectedError, match=f"{len(numbers)} numbers as model/{key}"):
        texts.check_manifest(manifest)


@pytest.mark.parametrize("seed", range(3))
def test_commands_refuse_a_bundle_whose_hashes_fit(
    opened: VerifiedBundle, tmp_path: Path, seed: int
) -> None:
    """The whole way, for a few: in one line, and the folder is as it was."""
    drawn = random.Random(seed)
    wanted = [place for place in places(opened.manifest) if place[:1] == ("model",)]
    place, value = drawn.choice(wanted[1:]), drawn.choice([None, True, "x", {}, 7.0])
    for name, content in opened.files.items():
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / name).write_bytes(content)
    manifest = changed(opened.manifest, place, value)
    (tmp_path / "b/manifest.json").write_bytes(_written(manifest))
    make_manifest_fit(tmp_path / "b")
    with pytest.raises(InputRejectedError, match=r"manifest\.json") as refused:
        open_bundle(tmp_path / "b")
    assert str(refused.value).isprintable()
    with pytest.raises(EdgecleanError):
        sign_bundle(tmp_path / "b", Signer(private_key=tmp_path / "none.pem"))
