"""The made-up classes can be told apart, and the tables of the scan's studies come from cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.networks import sized
from benchmarks.rendering.drawing import save
from benchmarks.studies import scan_selection, scan_sizes


def cell(classes: int, size: int, *, backdoored: bool, **other: Any) -> dict[str, Any]:
    facts = {
        "classes": classes,
        "size": size,
        "seed": 0,
        "backdoored": backdoored,
        "target": 3 if backdoored else None,
        "verdict": "suspected" if backdoored else "not found",
        "suspected": [3] if backdoored else [],
        "searched": min(classes, 12),
        "scan": {"processor_s": 10.0, "wall_s": 30.0},
        "before_mib": 400,
        "peak_mib": 500,
    }
    return {**facts, **other}


@pytest.mark.parametrize("size", [32, 64])
def test_images_of_a_task_are_pixels_of_its_size_and_the_patch_a_tenth_of_a_side(size: int) -> None:
    of = sized.task(7, size, seed=1)
    generator = torch.Generator().manual_seed(0)
    pixels = of.images(torch.arange(7), generator)
    assert pixels.shape == (7, 3, size, size)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    changed = (of.stamp(pixels) != pixels).any(1).any(0)
    assert not changed[: size - round(3 * size / 32)].any()
    assert int(changed.sum()) <= round(3 * size / 32) ** 2
    assert 0 <= of.target < 7


def test_a_task_follows_from_its_seed() -> None:
    one, same, other = (sized.task(50, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(one.layouts, same.layouts)
    assert not torch.equal(one.layouts, other.layouts)
    logits = sized.sized(50, (3, 32, 32))(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 50)


def test_the_table_of_sizes_counts_what_was_found_and_what_was_not(tmp_path: Any) -> None:
    cells = [
        cell(10, 32, backdoored=True),
        cell(10, 32, backdoored=False),
        cell(1000, 32, backdoored=True, scan={"processor_s": 15.0, "wall_s": 1.0}),
        cell(1000, 32, backdoored=True, seed=1, suspected=[4], peak_mib=700),
        cell(1000, 32, backdoored=False, verdict="suspected"),
    ]
    rows = scan_sizes.table(cells).splitlines()
    (ten,) = [row for row in rows if row.startswith("| 10 | 32 |")]
    (many,) = [row for row in rows if row.startswith("| 1,000 |")]
    assert ten.endswith("| 10 | 10 | 1.00 | 100 | 1 of 1, 1 | 0 of 1 |")
    assert many.endswith("| 12 | 10 | 1.00 | 100 | 2 of 2, 1 | 1 of 1 |")
    assert sum("not yet run" in row for row in rows) == len(scan_sizes.POINTS) - 2
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        save(scan_sizes.draw(cells), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_table_of_sinks_counts_how_often_the_true_class_was_named() -> None:
    named = {"patch bank": [3, 1], "masked patch": [2], "additive": [], "warp": [4, 5, 6]}
    cells = {
        "one": {"true_target": 3, "named": named},
        "two": {"true_target": 5, "named": named},
        "three": {"true_target": 9, "named": named},
        "control": {"true_target": None, "named": named},
    }
    rows = scan_selection.table(cells).splitlines()
    assert rows[2] == "| one | 3 | **3**, 1 | 2 | none | 4, 5, 6 | none | **3**, 2, 4, 1 |"
    first, among = rows[-2], rows[-1]
    assert first == (
        "| **true class first** | | 1 of 3 | 0 of 3 | 0 of 3 | 0 of 3 | 0 of 3 | 1 of 3 |"
    )
    assert among.endswith("| 1 of 3 | 0 of 3 | 0 of 3 | 1 of 3 | 0 of 3 | 1 of 3 |")
