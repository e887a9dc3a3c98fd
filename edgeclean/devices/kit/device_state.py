"""Read what a latency on a device depends on: model, clocks, temperature, memory, power mode.

Plain Python 3.6: it runs on the device. Everything is read, nothing is set; facts that a device
does not show, or only to root, are None or left out.
"""

import math
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

CHIPS = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7"}
CHIPS["tegra264"] = "11.0"
CLOCKS = (
    ("/sys/class/devfreq", "*/cur_freq", 1000000.0),
    ("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1000.0),
)


def describe(capability: Dict[str, str]) -> Dict[str, Any]:
    """Return the facts of the device and its software."""
    return {
        "model": first_line("/proc/device-tree/model"),
        "l4t": first_line("/etc/nv_tegra_release"),
        "compute_capability": capability["value"],
        "compute_capability_from": capability["from"],
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "memory_total_mib": memory_mib("MemTotal"),
    }


def snapshot() -> Dict[str, Any]:
    """Return its state: clocks in MHz, temperatures in degrees Celsius, free memory in MiB."""
    clocks = {}
    for root, pattern, divisor in CLOCKS:
        for path in sorted(Path(root).glob(pattern)):
            value = first_line(str(path))
            if value is not None and value.isdigit():
                name = path.relative_to(root).parts[0]
                clocks[name] = round(int(value) / divisor, 1)
    temperatures = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        value = first_line(str(zone / "temp"))
        if value is not None and value.lstrip("-").isdigit():
            temperatures[first_line(str(zone / "type")) or zone.name] = int(value) / 1000.0
    return {
        "clocks_mhz": clocks,
        "temperatures_c": temperatures,
        "memory_available_mib": memory_mib("MemAvailable"),
        "uptime_s": round(time.monotonic(), 1),
    }


def power_mode() -> Optional[str]:
    """Return the answer of ``nvpmodel -q`` in one line; its numbers differ between modules."""
    tool = shutil.which("nvpmodel") or "/usr/sbin/nvpmodel"
    try:
        finished = subprocess.run(
            [tool, "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    words = finished.stdout.decode("utf-8", "replace").split()
    return " ".join(words)[:200] or None


def compute_capability(expected: Optional[str]) -> Dict[str, str]:
    """Return the capability of this device's chip, else of its first GPU, else the expected one."""
    compatible = first_line("/proc/device-tree/compatible") or ""
    for chip in sorted(CHIPS):
        if chip in compatible:
            return {"value": CHIPS[chip], "from": "chip " + chip}
    try:
        finished = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
        )
        lines = finished.stdout.decode("ascii", "replace").split()
    except (OSError, subprocess.SubprocessError):
        lines = []
    if lines and lines[0].replace(".", "").isdigit():
        return {"value": lines[0], "from": "nvidia-smi"}
    return {"value": expected or "unknown", "from": "the bundle's target"}


def summarise(rounds: List[List[float]]) -> Dict[str, Any]:
    """Return percentiles of all runs, and each round's median, in milliseconds."""
    times = sorted(time_ms for one in rounds for time_ms in one)
    mean = sum(times) / len(times)
    spread = math.sqrt(sum((time_ms - mean) ** 2 for time_ms in times) / len(times))
    return {
        "p50_ms": percentile(times, 50.0),
        "p90_ms": percentile(times, 90.0),
        "p99_ms": percentile(times, 99.0),
        "min_ms": times[0],
        "mean_ms": mean,
        "coefficient_of_variation": spread / mean,
        "runs": len(times),
        "rounds_p50_ms": [percentile(sorted(one), 50.0) for one in rounds],
    }


def percentile(ordered: List[float], percent: float) -> float:
    """Return a percentile of sorted numbers, interpolated linearly between neighbours."""
    place = (len(ordered) - 1) * percent / 100.0
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def memory_mib(name: str) -> Optional[int]:
    """Return an entry of /proc/meminfo in MiB; None where it cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        if line.startswith(name + ":"):
            return int(line.split()[1]) // 1024
    return None


def first_line(path: str) -> Optional[str]:
    """Return the first line of a small file of the system; None where it cannot be read."""
    try:
        content = Path(path).read_bytes()[:4096]
    except OSError:
        return None
    text = content.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return text.splitlines()[0].strip() if text else None
