"""Run CLP on the published networks: ``python -m benchmarks.studies.clp_zoo``.

It writes ``results/clp-zoo.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.data.images import PACK_FOLDER, read_pack
from benchmarks.defences.base import batch_norms
from benchmarks.defences.clp import ClpSettings, clp
from benchmarks.environment import environment
from benchmarks.studies.published import RESULTS, ZOO_FOLDER, measure, published_networks
from edgeclean.networks.pixels import pixel_network


def main() -> None:
    parser = argparse.ArgumentParser(description="CLP on every published network.")
    parser.add_argument("--zoo", type=Path, default=ZOO_FOLDER)
    parser.add_argument("--pack", type=Path, default=PACK_FOLDER / "cifar10-test.npz")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--u", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "clp-zoo.json")
    options = parser.parse_args()
    images = read_pack(options.pack, options.images)
    settings = ClpSettings(u=options.u)
    rows: dict[str, object] = {}
    for name, network in published_networks(options.zoo).items():
        loaded = network.load()
        if not batch_norms(loaded.module):
            rows[name] = {"left_out": "no BatchNorm: CLP prunes BatchNorm channels"}
            continue
        pruned = clp(loaded, settings=settings)
        row = measure(pixel_network(pruned), images, network.stamp, network.target)
        row["pruned"] = pruned.history[-1].notes["pruned"]
        rows[name] = row
        print(name, json.dumps(row))
    record = {
        "command": "python -m benchmarks.studies.clp_zoo "
        f"--images {options.images} --u {options.u}",
        "data_given_to_the_defence": "none",
        "images": f"the first {len(images)} of the CIFAR-10 test set",
        "environment": environment(),
        "networks": rows,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
