"""Tensors that are not what they seem."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pickle_writing import (
    Quantised,
    Rebuilt,
    Storage,
    by_hand,
    lying_record,
    saved,
    tiny_weights,
)
from torch import Tensor, nn

TENSORS: list[tuple[str, str, Callable[[], bytes], str]] = [
    (
        "4 GB from one number",
        "a stride of zero makes a tensor of 10^9 numbers from four bytes",
        lambda: saved({"w": torch.ones(1).expand(10**9)}),
        r"w of shape 1000000000 repeats its numbers",
    ),
    (
        "windows that overlap",
        "rows that share numbers: written to, they change each other",
        lambda: saved({"w": torch.ones(10).as_strided((8, 3), (1, 1))}),
        "repeats its numbers",
    ),
    (
        "two tensors share a part",
        "one name's numbers are half of another's",
        lambda: saved(dict(zip("vw", _halves(), strict=True))),
        "v and w share some of their numbers",
    ),
    (
        "beyond its storage",
        "four numbers are stored, a thousand are claimed",
        lambda: by_hand({"w": Rebuilt(Storage(4), 0, (1000,), (1,))}),
        "damaged",
    ),
    (
        "before its storage",
        "a negative offset reads memory in front of the numbers",
        lambda: by_hand({"w": Rebuilt(Storage(4), -64, (4,), (1,))}),
        "damaged",
    ),
    (
        "negative size",
        "a shape of -1",
        lambda: by_hand({"w": Rebuilt(Storage(4), 0, (-1,), (1,))}),
        "damaged",
    ),
    (
        "sizes that overflow",
        "2^40 times 2^40 numbers are 0 to a careless multiplication",
        lambda: by_hand({"w": Rebuilt(Storage(4), 0, (2**40, 2**40), (2**40, 1))}),
        "damaged",
    ),
    (
        "storage longer than its record",
        "a thousand numbers from a record of four: the memory behind it is read as weights",
        lambda: by_hand({"w": Rebuilt(Storage(1000), 0, (1000,), (1,))}),
        "damaged",
    ),
    (
        "record that lies",
        "the directory says sixteen bytes, the record itself 2 GiB (pytorch issue 185440)",
        lying_record,
        "names do not match",
    ),
    (
        "storage that is not there",
        "names a record that the archive lacks",
        lambda: by_hand({"w": Rebuilt(Storage(4, key="7"), 0, (4,), (1,))}),
        "damaged",
    ),
    (
        "storage outside",
        "the record's name climbs out of the archive",
        lambda: by_hand({"w": Rebuilt(Storage(4, key="../../etc/passwd"), 0, (4,), (1,))}),
        "damaged",
    ),
    (
        "storage of no type",
        "a function where the storage's type should be",
        lambda: by_hand({"w": Rebuilt(Storage(4, kind=print), 0, (4,), (1,))}),
        r"damaged.*a storage of type builtins\.print",
    ),
    (
        "NaN",
        "one weight is NaN: every later number is, and comparisons are all false",
        lambda: saved(tiny_weights(**{"0_bias": torch.full((4,), float("nan"))})),
        "0.bias: 4 of 4 numbers are NaN or infinite",
    ),
    (
        "infinity by narrowing",
        "1e300 is finite as a double and infinite as the float that it becomes",
        lambda: saved(tiny_weights(**{"0_bias": torch.full((4,), 1e300, dtype=torch.float64)})),
        "NaN or infinite",
    ),
    (
        "negative variance",
        "a square root of it is NaN, later and elsewhere",
        lambda: saved({**tiny_weights(), "1.running_var": torch.full((4,), -1.0)}),
        "variances below zero",
    ),
    (
        "complex",
        "numbers that lose half of themselves when cast",
        lambda: saved({"w": torch.ones(2, dtype=torch.complex64)}),
        "w is complex64; only plain floats",
    ),
    (
        "quantised",
        "8-bit numbers with a scale that a cast would drop",
        lambda: saved({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
        "w is qint8",
    ),
    (
        "quantised, out of bounds",
        "a stride of 2^40 that torch does not check for this type (pytorch issue 184652)",
        lambda: by_hand({"w": Quantised(Storage(4, kind=torch.QInt8Storage), 0, (2,), (2**40,))}),
        "w is qint8",
    ),
    (
        "sparse",
        "indices without bounds, made dense by the reader",
        lambda: saved({"w": torch.ones(2, 2).to_sparse()}),
        "layout torch.sparse_coo",
    ),
    (
        "no numbers at all",
        "a meta tensor: 4 TB in shape, nothing in the file",
        lambda: saved({"w": torch.ones(10**12, device="meta")}),
        "w is a meta tensor",
    ),
    (
        "name that steers the terminal",
        "a key with escape sequences, waiting to be printed",
        lambda: saved({"w\x1b]0;owned\x07": torch.ones(1)}),
        "which is no name",
    ),
    (
        "name that reads backwards",
        "a right-to-left override makes one name look like another",
        lambda: saved({"w\u202egp.exe": torch.ones(1)}),
        "which is no name",
    ),
    ("number as a name", "a key that is no text", lambda: saved({3: torch.ones(1)}), "key '3'"),
    (
        "two networks",
        "a reader that takes the first and one that takes the last see different ones",
        lambda: saved({"net": {"w": torch.ones(1)}, "model": {"w": torch.zeros(1)}}),
        "holds 2 networks",
    ),
    (
        "hidden deep",
        "the state dict lies under more names than are looked under",
        lambda: saved({"net": {"net": {"net": {"net": {"w": torch.ones(1)}}}}}),
        "'net' is a dict",
    ),
    (
        "another network",
        "weights that do not belong to what they are said to be",
        lambda: saved(nn.Linear(3, 3).state_dict()),
        "names do not match the architecture",
    ),
    (
        "20,001 tensors",
        "one over the limit: each costs a record, a name, a message",
        lambda: saved(
            {f"w{index}": torch.ones(1) for index in range(20_001)},
            _use_new_zipfile_serialization=False,
        ),
        "20001 tensors; the limit entries is 20000",
    ),
]


def _halves() -> tuple[Tensor, Tensor]:
    numbers = torch.arange(8.0)
    return numbers[:5], numbers[4:]
