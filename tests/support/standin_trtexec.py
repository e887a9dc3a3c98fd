"""A stand-in for trtexec of one version: it refuses flags that its version does not have.

It builds no engine: the "engine" is a mark, the version and the network's hash, and its time
follows the network's size. `place_trtexec` puts it into a folder under the name ``trtexec``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

FLAGS = json.loads((Path(__file__).parent / "trtexec_flags.json").read_text("utf-8"))


def place_trtexec(folder: Path, version: str, *, seconds: float = 0.0) -> Path:
    """An executable of the version (a key of `FLAGS`); each run of an engine takes ``seconds``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trtexec"
    path.write_text(
        f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import standin_trtexec\nsys.exit(standin_trtexec.main({version!r}, {seconds}))\n"
    )
    path.chmod(0o755)
    (folder / "calls.log").touch()
    return path


def banner(version: str) -> str:
    numbers = [int(number) for number in version.split(".")] + [0, 0]
    major = 10000 if numbers[0] >= 10 else 1000
    return f"[TensorRT v{numbers[0] * major + numbers[1] * 100 + numbers[2]}]"


def main(version: str, seconds: float) -> int:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    say = sys.stdout.write
    say(f"&&&& RUNNING TensorRT.trtexec {banner(version)} # trtexec\n")
    log = Path(sys.argv[0]).parent / "calls.log"
    log.write_text(log.read_text() + json.dumps(sys.argv[1:]) + "\n")
    if "--help" in words:
        say("".join(f"  {flag}  what it does\n" for flag in FLAGS[version]))
        return 0
    unknown = [word for word in words if word not in FLAGS[version]]
    if unknown:
        say(f"[E] Unknown option: {unknown[0]}\n")
        return 1
    if "--onnx" in words:
        network = Path(words["--onnx"]).read_bytes()
        mark = f"engine of {version} {len(network)} {hashlib.sha256(network).hexdigest()}\n"
        Path(words["--saveEngine"]).write_bytes(mark.encode() + bytes(len(network)))
        outputs = [{"Name": "logits", "Format/Datatype": "Row major linear FP16 format"}]
        if "--exportLayerInfo" in words:
            layers = {"Layers": [{"Name": "conv", "Outputs": outputs}] * 3}
            Path(words["--exportLayerInfo"]).write_text(json.dumps(layers))
        return 0
    mark = Path(words["--loadEngine"]).read_bytes().split(b"\n")[0].decode()
    if not mark.startswith(f"engine of {version} "):
        say("[E] the engine was built by another version\n")
        return 1
    time.sleep(seconds)
    size = int(mark.split()[3])
    rows = [{"latencyMs": size / 1e4 + number / 1e3, "computeMs": 1.0} for number in range(20)]
    Path(words["--exportTimes"]).write_text(json.dumps(rows))
    return 0
