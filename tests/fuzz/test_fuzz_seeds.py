"""Every seed of the fuzzer, and some thousand small changes of them, are refused or read."""

from __future__ import annotations

import random
import warnings

import pytest
from fuzz_targets import SEEDS, TARGETS, limited_memory, run

MUTATIONS = {"pickle": 400, "zip": 400, "safetensors": 400, "onnx": 60, "toml": 300}
MUTATIONS |= dict.fromkeys(("npz", "sums", "manifest", "table", "answer"), 1000)
MUTATIONS |= dict.fromkeys(("depfiles", "signature", "certificate"), 1000)
LARGEST = 4096


def seeds(reader: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SEEDS / reader).iterdir())]


def test_every_reader_has_seeds_and_they_are_small() -> None:
    for reader in TARGETS:
        assert len(seeds(reader)) >= 10, reader
        assert max(map(len, seeds(reader))) <= LARGEST


@pytest.mark.slow
@pytest.mark.parametrize("reader", TARGETS)
def test_seeds_and_what_is_near_them(reader: str) -> None:
    draw = random.Random(reader)
    found = seeds(reader)
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parsers of deprecated types say so
        for contents in found:
            run(reader, contents)
        for _ in range(MUTATIONS[reader]):
            run(reader, mutated(draw, draw.choice(found), found))


def mutated(draw: random.Random, contents: bytes, others: list[bytes]) -> bytes:
    """A few changes of the kinds that fuzzers make."""
    changed = bytearray(contents)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << draw.randrange(8)
        elif kind == 1 and changed:
            changed[place % len(changed)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[place : place + draw.randint(1, 16)]
        elif kind == 3:
            changed[place:place] = changed[place : place + draw.randint(1, 64)]
        else:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            changed[place:place] = other[start : start + draw.randint(1, 64)]
    return bytes(changed)
