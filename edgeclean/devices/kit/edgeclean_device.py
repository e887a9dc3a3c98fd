"""Build and measure a bundle's networks on this device. Plain Python 3.6, nothing to install.

Run as ``sh kit/run.sh``. Finished work stays in the work folder: after a lost connection, a full
disk or a power cut, the same command goes on from there. Exit codes: 0 done, 2 usage, 3 bundle
changed, 7 trtexec missing, 8 an engine could not be built or run, 9 the disk is full.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

# In a bundle these files are one: the lines between the marks are left out there.
# <joined>
from edgeclean.devices.kit.checked_files import check_files
from edgeclean.devices.kit.device_state import (
    compute_capability,
    describe,
    power_mode,
    snapshot,
    summarise,
)
from edgeclean.devices.kit.storage import (
    SPARE_BYTES,
    Stop,
    engine_key,
    engine_name,
    exit_code,
    file_hash,
    find_trtexec,
    full_disk,
    log,
    nearly_full,
    need_space,
    write_json,
    write_result,
)
from edgeclean.devices.kit.trtexec_lines import (
    build_line,
    flags_in,
    layer_precisions,
    measure_line,
    read_times,
    version_in,
)

# </joined>

BUNDLE = Path(__file__).resolve().parent.parent
WARMUP_MS = 500
ROLES = {"original": "kit/original.onnx", "compressed": "model.onnx"}


class Kit:
    """One run of the kit: the bundle, the work folder and the device's trtexec."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.config = json.loads((BUNDLE / "kit" / "kit.json").read_text(encoding="utf-8"))
        self.manifest = file_hash(BUNDLE / "manifest.json")
        self.work = Path(options.work or Path.home() / ".edgeclean" / self.manifest[:16])
        self.work.mkdir(parents=True, exist_ok=True)
        self.trtexec = find_trtexec(options.trtexec)
        finished = subprocess.run(
            [self.trtexec, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        text = finished.stdout.decode("utf-8", "replace")
        version = version_in(text)
        if version is None:
            raise Stop(7, "%s does not tell its version; give another --trtexec" % self.trtexec)
        self.version = version
        self.known = flags_in(text)
        self.capability = compute_capability(self.config["compute_capability"])

    def line_options(self, precision: str) -> Dict[str, Any]:
        """Return the options of trtexec's command lines."""
        return {
            "precision": precision,
            "workspace_mib": self.options.workspace_mib,
            "dla_core": self.options.dla_core,
            "seconds": self.options.seconds,
            "warmup_ms": WARMUP_MS,
        }

    def version_text(self) -> str:
        """Return the version as text, such as "10.3.0"."""
        return ".".join(str(number) for number in self.version)


def main(words: Optional[List[str]] = None) -> int:
    """Verify, build, measure, write ``result.json``; return the exit code."""
    options = _parser().parse_args(words)

    def work() -> None:
        if min(options.rounds, options.seconds, options.workspace_mib) < 1:
            raise Stop(2, "--rounds, --seconds and --workspace-mib must each be 1 or more")
        if options.dla_core is not None and options.dla_core < 0:
            raise Stop(2, "--dla-core must be 0 or more")
        verify_bundle(BUNDLE)
        kit = Kit(options)
        write_result(kit.work, lambda: run(kit))

    return exit_code(work)


def run(kit: Kit) -> Dict[str, Any]:
    """Build and measure both networks, and return the whole record."""
    before, mode = snapshot(), power_mode()
    engines = {name: build(kit, name) for name in ("original", "compressed")}
    settled = sorted(entry["key"] for entry in engines.values())
    settings = {"seconds": kit.options.seconds, "engines": settled, "warmup_ms": WARMUP_MS}
    settings["power_mode"] = mode  # another one is another device, as far as times go
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    rounds = kit.work / "rounds" / digest
    rounds.mkdir(parents=True, exist_ok=True)
    resumed = any(path.suffix != ".partial" for path in rounds.iterdir())
    times: Dict[str, List[List[float]]] = {"original": [], "compressed": []}
    for number in range(kit.options.rounds):
        order = ("original", "compressed") if number % 2 == 0 else ("compressed", "original")
        for name in order:
            log("measuring %s, round %d of %d" % (name, number + 1, kit.options.rounds))
            times[name].append(measure(kit, engines[name], rounds / ("%d-%s" % (number, name))))
    samples = {name: summarise(rows) for name, rows in times.items()}
    return {
        "format": "edgeclean-device-1",
        "manifest_sha256": kit.manifest,
        "device": describe(kit.capability),
        "tensorrt": kit.version_text(),
        "power_mode": mode,
        "before": before,
        "after": snapshot(),
        "resumed": resumed,
        "settings": recorded_settings(kit),
        "engines": engines,
        "latency": {
            "original": samples["original"],
            "compressed": samples["compressed"],
            "speedup": samples["original"]["p50_ms"] / samples["compressed"]["p50_ms"],
            "kind": "measured",
        },
    }


def recorded_settings(kit: Kit) -> Dict[str, Any]:
    """Return the settings that the latencies depend on."""
    return {
        "rounds": kit.options.rounds,
        "seconds": kit.options.seconds,
        "warmup_ms": WARMUP_MS,
        "workspace_mib": kit.options.workspace_mib,
        "dla_core": kit.options.dla_core,
        "transfers": True,
        "cuda_graph": kit.version[0] >= 11 or "--useCudaGraph" in kit.known,
        "batch": kit.config["batch"],
    }


def verify_bundle(bundle: Path) -> None:
    """Stop unless the bundle is whole, and both networks are those that its manifest names."""
    check_files(bundle, ROLES.values())


def build(kit: Kit, name: str) -> Dict[str, Any]:
    """Return the record of one network's engine, from the cache or built now."""
    about = kit.config["networks"][name]
    source = BUNDLE / ROLES[name]
    sha256 = file_hash(source)
    key = engine_key(sha256, kit.version_text(), kit.capability["value"], about["precision"])
    key = engine_name(key, kit.options.workspace_mib, kit.options.dla_core)
    cache = kit.work / "engines"
    cache.mkdir(exist_ok=True)
    record = cache / (key + ".json")
    known = cached(record, cache / (key + ".plan"))
    if known is not None:
        return known
    need_space(cache, 4 * source.stat().st_size + SPARE_BYTES)
    files = {
        "onnx": str(source),
        "engine": str(cache / (key + ".partial")),
        "timing": str(cache / "timing.cache"),
        "layers": str(cache / (key + ".layers")),
    }
    log("building the engine of the %s network; this can take many minutes" % name)
    made = make_engine(kit, files, about["precision"], name)
    made.update({"key": key, "onnx_sha256": sha256, "precision": about["precision"]})
    os.replace(files["engine"], str(cache / (key + ".plan")))
    write_json(record, made)
    return made


def cached(record: Path, plan: Path) -> Optional[Dict[str, Any]]:
    """Return the record of an engine that was built before; None where it is not whole."""
    try:
        entry: Dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        whole = file_hash(plan) == entry["engine_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    entry["cached"] = True
    return entry if whole else None


def make_engine(kit: Kit, files: Dict[str, str], precision: str, name: str) -> Dict[str, Any]:
    """Have trtexec write the engine, and return its record."""
    started = time.monotonic()
    try:
        line = build_line(kit.version, kit.known, files, kit.line_options(precision))
    except ValueError as error:
        raise Stop(8, str(error)) from None
    call(kit, line, "build the engine of the %s network" % name)
    engine = Path(files["engine"])
    if not engine.is_file() or engine.stat().st_size == 0:
        if nearly_full(engine.parent):
            raise Stop(9, full_disk(engine.parent))
        raise Stop(8, "trtexec answered success and wrote no engine for the %s network" % name)
    return {
        "engine_sha256": file_hash(engine),
        "bytes": engine.stat().st_size,
        "build_seconds": round(time.monotonic() - started, 1),
        "cached": False,
        "flags": sorted({word.split("=")[0] for word in line}),
        "layer_precisions": layer_precisions(Path(files["layers"])),
    }


def measure(kit: Kit, engine: Dict[str, Any], path: Path) -> List[float]:
    """Return one round's latencies in milliseconds, from the work folder if it was made before."""
    times = read_times(path)
    if times:
        return times
    need_space(kit.work, SPARE_BYTES // 8)
    partial = path.with_name(path.name + ".partial")
    files = {
        "engine": str(kit.work / "engines" / (engine["key"] + ".plan")),
        "times": str(partial),
    }
    line = measure_line(kit.version, kit.known, files, kit.line_options(engine["precision"]))
    call(kit, line, "measure")
    times = read_times(partial)
    if not times:
        full = nearly_full(kit.work)
        raise Stop(9 if full else 8, full_disk(kit.work) if full else "trtexec exported no times")
    os.replace(str(partial), str(path))
    return times


def call(kit: Kit, line: List[str], what: str) -> None:
    """Run trtexec; stop with its last error line if it fails."""
    output = kit.work / "trtexec.log"
    with output.open("wb") as stream:
        code = subprocess.call([kit.trtexec, *line], stdout=stream, stderr=subprocess.STDOUT)
    if code == 0:
        return
    if nearly_full(kit.work):
        raise Stop(9, full_disk(kit.work))
    lines = output.read_bytes().decode("utf-8", "replace").splitlines()
    errors = [one.strip() for one in lines if "[E]" in one or "rror" in one] or lines[-1:] or ["?"]
    raise Stop(
        8, "trtexec (TensorRT %s) could not %s: %s" % (kit.version_text(), what, errors[-1][:300])
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Build and measure a bundle on this device.")
    parser.add_argument("--work", help="where engines and results are kept")
    parser.add_argument("--trtexec", help="its path, where it is not found")
    parser.add_argument("--rounds", type=int, default=5, help="of original and compressed")
    parser.add_argument("--seconds", type=int, default=2, help="each network in each round")
    parser.add_argument("--workspace-mib", type=int, default=1024, help="for TensorRT's builder")
    parser.add_argument("--dla-core", type=int, help="build for this accelerator core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
