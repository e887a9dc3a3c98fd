"""The Yocto layer, as far as it can be checked without bitbake: its script runs for real."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from programs import Program
from tiny_networks import tiny_contents

from edgeclean.bundle.bundle import write_bundle

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
