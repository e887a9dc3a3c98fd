"""The Yocto layer, as far as it can be checked without bitbake: its script runs for real."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bundle_files import make_checksums_fit
from programs import Program
from tiny_networks import tiny_contents

from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.manifest import canonical_json

LAYER = Path(__file__).parents[2] / "edgeclean/integrations/yocto/meta-edgeclean"
FILES = LAYER / "recipes-core/edgeclean-engines/files"
SCRIPT = FILES / "edgeclean-build-engines"
TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then
    echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$VERSION] # trtexec --help"
    echo "  --skipInference"
    exit 0
fi
echo "$@" >>"$LOG"
for word; do
    case $word in
    --onnx=*) onnx=${word#*=} ;;
    --saveEngine=*) engine=${word#*=} ;;
    esac
done
{ echo "engine $VERSION of"; cat "$onnx"; } >"$engine"
exit "${FAIL:-0}"
"""


class Device:
    """A root with one model, and a stand-in for trtexec that only a device has."""

    def __init__(self, folder: Path) -> None:
        self.models, self.engines = folder / "models", folder / "engines"
        self.log, self._trtexec = folder / "log", folder / "trtexec"
        self.model = self.models / "digits"
        self._trtexec.write_text(TRTEXEC, encoding="utf-8")
        self._trtexec.chmod(0o755)
        write_bundle(self.model, tiny_contents())

    def boot(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(SCRIPT)],
            env={
                **os.environ,
                "EDGECLEAN_MODELS": str(self.models),
                "EDGECLEAN_ENGINES": str(self.engines),
                "EDGECLEAN_TRTEXEC": str(self._trtexec),
                "VERSION": "100300",
                "LOG": str(self.log),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def built(self) -> int:
        return len(self.log.read_text("utf-8").splitlines()) if self.log.exists() else 0

    def engine(self) -> bytes:
        return (self.engines / "digits" / "engine.plan").read_bytes()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_an_engine_is_built_at_the_first_boot_and_not_at_the_second(device: Device) -> None:
    assert device.boot().returncode == 0
    assert device.engine().endswith((device.model / "model.onnx").read_bytes())
    words = device.log.read_text("utf-8")
    assert "--skipInference" in words
    assert device.boot().returncode == 0
    assert device.built() == 1
    inside = {path.name for path in (device.engines / "digits").iterdir()}
    assert inside == {"engine.plan", "engine.key", "build.log"}


def test_what_decides_an_engine_builds_it_again(device: Device) -> None:
    device.boot()
    device.boot(VERSION="100700")
    assert device.built() == 2
    assert device.engine().startswith(b"engine 100700")
    device.boot(VERSION="100700", EDGECLEAN_TRTEXEC_OPTIONS="--fp16 --noTF32")
    assert device.built() == 3
    assert device.log.read_text("utf-8").splitlines()[-1].endswith("--fp16 --noTF32")
    shutil.rmtree(device.model)
    write_bundle(device.model, tiny_contents(another=1.0))  # the same network
    device.boot(VERSION="100700", EDGECLEAN_TRTEXEC_OPTIONS="--fp16 --noTF32")
    assert device.built() == 3


@pytest.mark.parametrize(
    ("version", "precision", "options", "flags"),
    [
        ("8502", "fp32", "", ""),
        ("8502", "fp16", "", "--fp16"),
        ("8602", "int8", "--noTF32", "--int8 --noTF32"),
        ("100300", "fp16", "", "--stronglyTyped"),
        ("101602", "fp32", "", "--stronglyTyped"),
        ("110000", "fp16", "", ""),
        ("100300", "fp16", "--noTF32 --fp16", "--noTF32 --fp16"),
        ("8502", "fp32", "--useDLACore=0 --fp16", "--useDLACore=0 --fp16"),
    ],
)
def test_trtexec_is_told_the_precision_of_the_graph_in_the_words_of_its_version(
    device: Device, version: str, precision: str, options: str, flags: str
) -> None:
    manifest = json.loads((device.model / "manifest.json").read_bytes())
    manifest["configuration"] = {"precision": {"format": precision, "images": 8}}
    (device.model / "manifest.json").write_bytes(canonical_json(manifest))
    assert device.boot(VERSION=version, EDGECLEAN_TRTEXEC_OPTIONS=options).returncode == 0
    assert " ".join(device.log.read_text("utf-8").split()[3:]) == flags


def test_a_failed_build_leaves_the_old_engine_and_is_tried_again(device: Device) -> None:
    device.boot()
    before = device.engine()
    failed = device.boot(VERSION="100700", FAIL="1")
    assert failed.returncode == 1
    assert "build.log" in failed.stderr
    assert device.engine() == before
    assert not list((device.engines / "digits").glob(".partial*"))
    assert device.boot(VERSION="100700").returncode == 0
    assert device.engine() != before


def test_a_changed_network_gets_no_engine(device: Device) -> None:
    onnx = device.model / "model.onnx"
    contents = bytearray(onnx.read_bytes())
    contents[100] ^= 1
    onnx.write_bytes(contents)
    said = device.boot()
    assert said.returncode == 1
    assert "not the one" in said.stderr
    assert device.built() == 0


def test_one_bad_model_does_not_keep_the_others_from_their_engine(device: Device) -> None:
    (device.models / "a-bad-one").mkdir()
    assert device.boot().returncode == 1
    assert device.engine()


def test_without_trtexec_it_says_so(device: Device) -> None:
    said = device.boot(EDGECLEAN_TRTEXEC="no-such-trtexec")
    assert said.returncode == 7
    assert "not installed" in said.stderr


def test_a_script_that_was_killed_is_made_good(device: Device) -> None:
    device.boot()
    place = device.engines / "digits"
    (place / ".partial.1").write_bytes(b"half an engine")
    (place / "engine.key").unlink()  # killed before the key: the engine counts as none
    assert device.boot().returncode == 0
    assert device.built() == 2
    assert not list(place.glob(".partial*"))


def test_an_engine_never_stands_beside_the_key_of_another(device: Device, tmp_path: Path) -> None:
    """With a disk that fills up between the engine and its key."""
    device.boot()
    tools = tmp_path / "tools"
    tools.mkdir()
    words = '#!/bin/sh\ncase "$*" in *engine.key) exit 1 ;; esac\nexec /bin/mv "$@"\n'
    (tools / "mv").write_text(words, encoding="utf-8")
    (tools / "mv").chmod(0o755)
    failed = device.boot(VERSION="100700", PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert failed.returncode == 1
    assert "cannot be written" in failed.stderr
    assert device.boot().returncode == 0  # back to the first TensorRT
    assert device.engine().startswith(b"engine 100300")


def test_an_engine_that_cannot_be_put_in_place_gets_no_key(device: Device, tmp_path: Path) -> None:
    device.boot()
    tools = tmp_path / "tools"
    tools.mkdir()
    words = '#!/bin/sh\ncase "$*" in *engine.plan) exit 1 ;; esac\nexec /bin/mv "$@"\n'
    (tools / "mv").write_text(words, encoding="utf-8")
    (tools / "mv").chmod(0o755)
    failed = device.boot(VERSION="100700", PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert failed.returncode == 1
    assert not (device.engines / "digits" / "engine.key").exists()


def class_function(name: str) -> str:
    """The body of a shell function of the class, with bitbake's variables as shell's."""
    text = (LAYER / "classes/edgeclean-model.bbclass").read_text("utf-8")
    found = re.search(rf"^{name}\(\) {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_the_class_takes_the_named_bundle_and_no_other(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", tiny_contents()).path
    script = 'bbfatal() { echo "$*" >&2; exit 1; }\nset -e\n'
    script += class_function("do_compile") + class_function("do_install")

    def build(manifest_sha256: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "EDGECLEAN_BUNDLE": str(bundle),
            "EDGECLEAN_MANIFEST_SHA256": manifest_sha256,
            "EDGECLEAN_MODEL": "digits",
            "D": str(tmp_path / "image"),
            "datadir": "/usr/share",
            "PATH": os.environ["PATH"],
        }
        return subprocess.run(
            ["sh", "-c", script], env=environment, capture_output=True, text=True, check=False
        )

    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert "give EDGECLEAN_MANIFEST_SHA256" in build("").stderr
    assert "not the bundle" in build("0" * 64).stderr
    assert not (tmp_path / "image").exists()
    built = build(digest)
    assert built.returncode == 0, built.stderr
    installed = tmp_path / "image/usr/share/edgeclean/digits"
    assert {path.name for path in installed.iterdir()} == {
        "model.onnx",
        "manifest.json",
        "SHA256SUMS",
    }
    # Another network with hashes to match, but not the manifest's.
    (bundle / "model.onnx").write_bytes(b"another")
    lines = (bundle / "SHA256SUMS").read_text("utf-8").splitlines()
    another = hashlib.sha256(b"another").hexdigest()
    lines = [f"{another}  model.onnx" if line.endswith(" model.onnx") else line for line in lines]
    (bundle / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "the manifest names another" in build(digest).stderr


@dataclass(frozen=True)
class Build:
    """do_compile and do_install of a recipe whose pin is of the bundle as it is now."""

    bundle: Path
    image: Path

    def __call__(self, *tasks: str) -> subprocess.CompletedProcess[str]:
        script = 'bbfatal() { echo "$*" >&2; exit 1; }\nset -e\n'
        script += "".join(map(class_function, tasks or ("do_compile", "do_install")))
        digest = hashlib.sha256((self.bundle / "manifest.json").read_bytes()).hexdigest()
        environment = {
            "EDGECLEAN_BUNDLE": str(self.bundle),
            "EDGECLEAN_MANIFEST_SHA256": digest,
            "EDGECLEAN_MODEL": "digits",
            "D": str(self.image),
            "datadir": "/usr/share",
            "PATH": os.environ["PATH"],
        }
        return subprocess.run(
            ["sh", "-c", script], env=environment, capture_output=True, text=True, check=False
        )

    def change_manifest(self, **entries: object) -> None:
        manifest = json.loads((self.bundle / "manifest.json").read_bytes())
        (self.bundle / "manifest.json").write_bytes(canonical_json({**manifest, **entries}))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    original = {"kit/original.onnx": b"the unpurified network", "kit/model.onnx": b"another"}
    contents = replace(tiny_contents(), reproducible_files=original)
    bundle = write_bundle(tmp_path / "bundle", contents).path
    return Build(bundle, tmp_path / "image")


def test_no_other_file_of_the_bundle_is_its_network(build: Build) -> None:
    """Each has a hash in the manifest, and in a list of hashes that was made to fit."""
    model = (build.bundle / "model.onnx").read_bytes()
    others = [path for path in build.bundle.rglob("*") if path.is_file()]
    others.remove(build.bundle / "model.onnx")
    others.remove(build.bundle / "SHA256SUMS")
    assert len(others) >= 6
    for path in others:
        (build.bundle / "model.onnx").write_bytes(path.read_bytes())
        make_checksums_fit(build.bundle)
        said = build()
        assert said.returncode == 1, path
        assert "the manifest names another model.onnx" in said.stderr
    assert not build.image.exists()
    (build.bundle / "model.onnx").write_bytes(model)
    make_checksums_fit(build.bundle)
    assert build().returncode == 0


@pytest.mark.parametrize("above", ["configuration", "target"])
def test_the_entry_counts_that_stands_among_the_files(build: Build, above: str) -> None:
    """The same lines stand elsewhere in the manifest, before or behind, with another hash."""
    digest = hashlib.sha256(b"the unpurified network").hexdigest()
    decoy = {
        "model.onnx": {"bytes": 1, "sha256": digest},
        "files": {"model.onnx": {"sha256": digest}},
    }
    build.change_manifest(**{above: decoy})
    make_checksums_fit(build.bundle)
    assert build().returncode == 0
    (build.bundle / "model.onnx").write_bytes(b"the unpurified network")
    make_checksums_fit(build.bundle)
    assert "the manifest names another model.onnx" in build().stderr


def test_a_manifest_without_the_entry_names_no_network(build: Build) -> None:
    build.change_manifest(files={})
    make_checksums_fit(build.bundle)
    assert "does not name one model.onnx" in build().stderr
    text = (build.bundle / "manifest.json").read_text("utf-8")
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    twice = json.dumps({"model.onnx": entry}, indent=2).replace("\n", "\n  ")
    text = text.replace('"files": {}', f'"files": {twice},\n  "files": {twice}')
    (build.bundle / "manifest.json").write_text(text, encoding="utf-8")
    assert "does not name one model.onnx" in build().stderr


NETWORK = "NETWORK"  # stands for the hash of model.onnx


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{NETWORK}  ./model.onnx", "a line that edgeclean does not write"),
        (f"{NETWORK} *model.onnx", "a line that edgeclean does not write"),
        (f"{NETWORK}  kit/../model.onnx", "a line that edgeclean does not write"),
        (f"{NETWORK}  /model.onnx", "a line that edgeclean does not write"),
        (f"\\{NETWORK}  model\\\\.onnx", "a line that edgeclean does not write"),
        (f"SHA256 (model.onnx) = {NETWORK}", "a line that edgeclean does not write"),
        ("# a comment", "a line that edgeclean does not write"),
        (f"{NETWORK}  model.onnx", "names a file twice"),
        (f"{'0' * 64}  model.onnx", "names a file twice"),
        (f"{'0' * 64}  kit/model.onnx", "names a file twice"),
    ],
)
def test_a_list_has_each_name_once_as_edgeclean_writes_it(
    build: Build, line: str, said: str
) -> None:
    digest = hashlib.sha256((build.bundle / "model.onnx").read_bytes()).hexdigest()
    with (build.bundle / "SHA256SUMS").open("a", encoding="utf-8") as stream:
        stream.write(line.replace(NETWORK, digest) + "\n")
    assert said in build().stderr


@pytest.mark.parametrize("other", ["kit/original.onnx", "kit/model.onnx", None])
def test_a_list_without_the_network_is_refused(build: Build, other: str | None) -> None:
    lines = (build.bundle / "SHA256SUMS").read_text("utf-8").splitlines()
    lines = [line for line in lines if not line.endswith("  model.onnx")]
    if other is not None:  # its line is there, the network's is not
        assert any(line.endswith(other) for line in lines)
    (build.bundle / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "SHA256SUMS names another model.onnx" in build().stderr


def test_what_changed_since_do_compile_is_not_installed(build: Build) -> None:
    assert build().returncode == 0
    (build.bundle / "model.onnx").write_bytes(b"the unpurified network")
    make_checksums_fit(build.bundle)
    said = build("do_install")
    assert said.returncode == 1
    assert "changed while it was built" in said.stderr


@pytest.mark.parametrize("list_fits", [True, False])
def test_a_device_builds_for_the_network_that_the_manifest_names(
    device: Device, list_fits: bool
) -> None:
    another = (device.model / "golden.safetensors").read_bytes()  # it too has its hash there
    (device.model / "model.onnx").write_bytes(another)
    if list_fits:
        make_checksums_fit(device.model)
    said = device.boot()
    assert said.returncode == 1
    assert "not the one that its manifest names" in said.stderr
    assert device.built() == 0
    (device.model / "manifest.json").unlink()
    assert device.boot().returncode == 1
    (device.model / "model.onnx").unlink()  # neither hash is known: they are not the same
    assert device.boot().returncode == 1
    assert device.built() == 0


def test_the_unit_is_what_systemd_takes(tmp_path: Path, program: Program) -> None:
    analyze = str(program("systemd-analyze"))
    root = tmp_path / "root"
    for place in ("usr/libexec", "usr/lib/systemd/system", "etc"):
        (root / place).mkdir(parents=True)
    shutil.copy(SCRIPT, root / "usr/libexec")
    (root / "usr/libexec/edgeclean-build-engines").chmod(0o755)
    unit = root / "usr/lib/systemd/system/edgeclean-engines.service"
    for other in ("sysinit.target", "basic.target", "shutdown.target", "local-fs.target"):
        stand_in = "[Unit]\nDescription=x\nDefaultDependencies=no\n"
        (unit.parent / other).write_text(stand_in, encoding="utf-8")
    for text, good in (
        ((FILES / unit.name).read_text("utf-8"), True),
        (
            (FILES / unit.name).read_text("utf-8").replace("ProtectHome=yes", "ProtectHom=yes"),
            False,
        ),
    ):
        unit.write_text(text, encoding="utf-8")
        finished = subprocess.run(
            [analyze, "verify", f"--root={root}", "--man=no", unit.name],
            capture_output=True,
            text=True,
            check=False,
        )
        own = [line for line in finished.stderr.splitlines() if "edgeclean" in line]
        assert (own == []) is good, own


def test_the_layer_names_what_it_ships() -> None:
    recipe = (LAYER / "recipes-core/edgeclean-engines/edgeclean-engines_1.0.bb").read_text("utf-8")
    named = set(re.findall(r"file://(edgeclean\S+)", recipe))
    assert named == {path.name for path in FILES.iterdir()}
    example = (LAYER / "recipes-example/example-model/example-model_1.0.bb").read_text("utf-8")
    assert "inherit edgeclean-model" in example
    unit = (FILES / "edgeclean-engines.service").read_text("utf-8")
    assert "ExecStart=/usr/libexec/edgeclean-build-engines" in unit
    assert subprocess.run(["sh", "-n", str(SCRIPT)], check=False).returncode == 0
