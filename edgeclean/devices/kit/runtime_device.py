"""Measure a bundle's networks in a runtime that is installed on this device.

Plain Python 3.9 and the runtime's wheel. Run as ``sh kit/run.sh``. Each measurement is a process of
its own, so that a runtime that crashes is a sentence. Finished rounds stay in the work folder:
after a lost connection or a full disk, the same command goes on from there. Exit codes: 0 done, 2
usage, 3 bundle changed, 7 the runtime is missing, 8 it could not load or run a network, 9 the disk
is full.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

# In a bundle these files are one: the lines between the marks are left out there.
# <joined>
from edgeclean.devices.kit.checked_files import check_files
from edgeclean.devices.kit.device_state import first_line, memory_mib, snapshot, summarise
from edgeclean.devices.kit.runtime_engines import (
    PACKAGES,
    golden_tensor,
    open_network,
    runtime_version,
)
from edgeclean.devices.kit.storage import (
    SPARE_BYTES,
    Stop,
    exit_code,
    file_hash,
    log,
    need_space,
    write_json,
    write_result,
)

# </joined>

BUNDLE = Path(__file__).resolve().parent.parent
PROGRAM = "kit/edgeclean_device.py"  # what the processes run that measure
GOLDEN = "golden.safetensors"
WARMUP_MS = 500
MOST_RUNS = 100000  # of one network in one round
CPU = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"


class RuntimeKit:
    """One run of the kit: the bundle, the work folder and this Python's runtime."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.bundle = options, options.bundle
        self.config = kit_config(self.bundle)
        self.name: str = self.config["runtime"]
        self.version = runtime_version(self.name)
        if self.version is None:
            raise Stop(7, missing_runtime(self.name))
        self.manifest = file_hash(self.bundle / "manifest.json")
        named = "%s-%s" % (self.manifest[:16], self.name)
        self.work = Path(options.work or Path.home() / ".edgeclean" / named)
        self.work.mkdir(parents=True, exist_ok=True)

    def settings(self) -> Dict[str, Any]:
        """Return the settings that the latencies depend on."""
        return {
            "batch": self.config["batch"],
            "precision": self.config["precision"],
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "threads": self.options.threads,
            "warmup_ms": WARMUP_MS,
        }

    def files(self, role: str) -> List[str]:
        """Return the names of a network's files in the bundle."""
        return list(self.config["networks"][role])


def kit_config(bundle: Path) -> Dict[str, Any]:
    """Return what the kit of a bundle is for."""
    config: Dict[str, Any] = json.loads((bundle / "kit" / "kit.json").read_text(encoding="utf-8"))
    return config


def missing_runtime(name: str) -> str:
    """Return the sentence for a Python that has no such runtime."""
    package = PACKAGES[name]
    return (
        "the runtime %s is not installed for %s (Python %s); install its wheel there (python3 -m "
        "venv env && env/bin/python -m pip install %s), and name that Python: --python "
        "env/bin/python over ssh, PYTHON=env/bin/python by hand"
        % (name, sys.executable, platform.python_version(), package)
    )


def main(words: Optional[List[str]] = None) -> int:
    """Verify, measure, write ``result.json``; return the exit code."""
    options = _parser().parse_args(words)

    def work() -> None:
        if sys.version_info < (3, 9):
            raise Stop(7, "Python %s is too old; 3.9 is needed" % platform.python_version())
        if min(options.rounds, options.seconds, options.threads, options.spare) < 1:
            raise Stop(2, "--rounds, --seconds, --threads and --spare must each be 1 or more")
        if options.child:
            return child(options)
        networks = kit_config(options.bundle)["networks"]
        check_files(options.bundle, [*networks["compressed"], GOLDEN], networks["original"])
        kit = RuntimeKit(options)
        write_result(kit.work, lambda: run(kit))
        return None

    return exit_code(work)


def run(kit: RuntimeKit) -> Dict[str, Any]:
    """Check and measure both networks, and return the whole record."""
    before = state()
    log("running the golden images")
    parity = answer_of(kit, "compressed", ["--golden"])
    rounds = kit.work / "rounds" / round_key(kit)
    rounds.mkdir(parents=True, exist_ok=True)
    resumed = any(path.suffix == ".json" for path in rounds.iterdir())
    times: Dict[str, List[List[float]]] = {"original": [], "compressed": []}
    for number in range(kit.options.rounds):
        order = ("original", "compressed") if number % 2 == 0 else ("compressed", "original")
        for role in order:
            log("measuring %s, round %d of %d" % (role, number + 1, kit.options.rounds))
            times[role].append(measure(kit, role, rounds / ("%d-%s.json" % (number, role))))
    samples = {role: summarise(rows) for role, rows in times.items()}
    return {
        "format": "edgeclean-device-runtime-1",
        "manifest_sha256": kit.manifest,
        "device": describe_board(),
        "runtime": {"name": kit.name, "version": kit.version},
        "before": before,
        "after": state(),
        "resumed": resumed,
        "settings": kit.settings(),
        "parity": {**parity, "tolerance": kit.config["tolerance"]},
        "latency": {
            "original": samples["original"],
            "compressed": samples["compressed"],
            "speedup": samples["original"]["p50_ms"] / samples["compressed"]["p50_ms"],
            "kind": "measured",
        },
    }


def describe_board() -> Dict[str, Any]:
    """Return the facts of the device and its software."""
    return {
        "model": first_line("/proc/device-tree/model"),
        "machine": platform.machine(),
        "processors": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memory_total_mib": memory_mib("MemTotal"),
    }


def state() -> Dict[str, Any]:
    """Return clocks, temperatures and memory, and what holds the clocks back on a Raspberry Pi."""
    return {**snapshot(), "governor": first_line(CPU), "throttled": throttled()}


def throttled() -> Optional[int]:
    """Return the bits of ``vcgencmd get_throttled``; None on a device that has no such program.

    Bits 0 to 3 are now: too low a voltage, capped clocks, throttled, too warm. Bits 16 to 19 are
    the same, since it was started.
    """
    tool = shutil.which("vcgencmd") or "/usr/bin/vcgencmd"
    try:
        finished = subprocess.run(
            [tool, "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
        return int(finished.stdout.decode("ascii", "replace").strip().split("=")[1], 16) & 0xFFFFF
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def round_key(kit: RuntimeKit) -> str:
    """Return what a round's times belong to: both networks, the runtime and every setting."""
    names = [*kit.files("original"), *kit.files("compressed")]
    belongs = {
        "files": {name: file_hash(kit.bundle / name) for name in names},
        "runtime": [kit.name, kit.version, sys.version],
        "settings": {**kit.settings(), "rounds": None},
    }
    return hashlib.sha256(json.dumps(belongs, sort_keys=True).encode()).hexdigest()[:16]


def measure(kit: RuntimeKit, role: str, path: Path) -> List[float]:
    """Return one round's latencies in milliseconds, from the work folder if it was made before."""
    if path.is_file():
        try:
            return checked_times(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            pass  # not whole: it is measured again
    need_space(kit.work, SPARE_BYTES // 8)
    try:
        times = checked_times(answer_of(kit, role, [])["times_ms"])
    except ValueError:
        raise Stop(8, "%s gave no times of the %s network" % (title(kit), role)) from None
    write_json(path, times)
    return times


def checked_times(times: Any) -> List[float]:
    """Return latencies that are numbers above 0.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(times, list) or not times:
        raise ValueError("no times")
    if not all(isinstance(one, float) and 0 < one < math.inf for one in times):
        raise ValueError("times that are none")
    return times


def answer_of(kit: RuntimeKit, role: str, words: List[str]) -> Dict[str, Any]:
    """Have a process of its own load a network and do one thing; return what it wrote."""
    options, answer = kit.options, kit.work / "answer.json"
    line = [sys.executable, "-I", "-B", str(kit.bundle / PROGRAM), "--child", role, *words]
    line += ["--output", str(answer), "--seconds", str(options.seconds)]
    line += ["--threads", str(options.threads)]
    output = kit.work / "runtime.log"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    try:
        with output.open("wb") as stream:
            code = subprocess.call(
                line,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=options.seconds + options.spare,
            )
    except subprocess.TimeoutExpired:
        raise Stop(8, "%s did not end with the %s network in time" % (title(kit), role)) from None
    if code == 0:
        found: Dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    if code < 0:
        raise Stop(8, "%s crashed with the %s network (signal %d)" % (title(kit), role, -code))
    lines = output.read_bytes()[-65536:].decode("utf-8", "replace").splitlines() or ["?"]
    said = [one[len("error: ") :] for one in lines if one.startswith("error: ")] or lines
    if code == 9:
        raise Stop(9, said[-1][:300])
    raise Stop(8, "%s cannot run the %s network: %s" % (title(kit), role, said[-1][:300]))


def title(kit: RuntimeKit) -> str:
    """Return the runtime's name and version, for messages."""
    return "%s %s" % (kit.name, kit.version)


def child(options: argparse.Namespace) -> None:
    """Load one network, run the golden images or take times, and write what was found."""
    bundle = options.bundle
    config = kit_config(bundle)
    folder = (bundle / config["networks"][options.child][0]).parent
    try:
        images = golden_tensor(bundle / GOLDEN, "input")
        network = open_network(config["runtime"], folder, config["precision"], options.threads)
        if options.golden:
            expected = golden_tensor(bundle / GOLDEN, config["golden"])
            found = compare(network, images, expected, config["batch"])
        else:
            found = {"times_ms": take_times(network, images, config, options.seconds)}
    except Exception as error:  # noqa: BLE001 - the runtimes' exceptions share no base class
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise Stop(8, said[0]) from None
    write_json(Path(options.output), found)


def compare(network: Any, images: Any, expected: Any, batch: int) -> Dict[str, Any]:
    """Return how far the logits of the golden images are from those in the bundle."""
    import numpy as np

    rows = []
    for first in range(0, len(images), batch):
        part = images[first : first + batch]
        filling = np.zeros((batch - len(part), *images.shape[1:]), np.float32)
        rows.append(np.array(network(np.concatenate([part, filling])))[: len(part)])
    found = np.concatenate(rows)
    if found.shape != expected.shape:
        raise ValueError("it gives %s logits; %s are stored" % (found.shape, expected.shape))
    if not np.isfinite(found).all():
        raise ValueError("it gives logits that are not finite")
    largest = np.maximum(1, np.abs(expected).max(axis=1, keepdims=True))
    difference = float((np.abs(found - expected) / largest).max())
    return {"images": len(images), "max_relative_difference": difference}


def take_times(network: Any, images: Any, config: Dict[str, Any], seconds: int) -> List[float]:
    """Return the latencies of one batch in milliseconds, after half a second of warming up."""
    import numpy as np

    batch = np.resize(images, (config["batch"], *images.shape[1:])).astype(np.float32)
    warm = time.perf_counter() + WARMUP_MS / 1000.0
    network(batch)
    while time.perf_counter() < warm:
        network(batch)
    times: List[float] = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < MOST_RUNS):
        began = time.perf_counter()
        network(batch)
        times.append((time.perf_counter() - began) * 1000.0)
    return times


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a bundle in a runtime on this device.")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="its folder, if not this one")
    parser.add_argument("--work", help="where results are kept")
    parser.add_argument("--rounds", type=int, default=5, help="of original and compressed")
    parser.add_argument("--seconds", type=int, default=2, help="each network in each round")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime")
    parser.add_argument("--spare", type=int, default=500, help="seconds to start, load, warm up")
    for name in ("--child", "--output"):  # of the processes that measure
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--golden", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
