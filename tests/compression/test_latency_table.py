"""Signatures, forms and the file of a latency table."""

import json

import pytest
from factor_networks import plain
from latency_tables import made_up_table

from edgeclean.compression.latency_table import (
    MAX_FILE_BYTES,
    TimedRanks,
    parse_latency_table,
    read_latency_table,
)
from edgeclean.errors import UsageError


@pytest.fixture(scope="module")
def table():
    return made_up_table(plain())


def test_a_table_survives_its_file(table, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(table.canonical())
    read = read_latency_table(path)
    assert read == table
    assert read.sha256 == table.sha256
    assert json.loads(path.read_bytes())["format"] == "edgeclean-latency-table-1"
    path.write_text(json.dumps(json.loads(path.read_bytes())))  # another form of the same table
    assert read_latency_table(path).sha256 == table.sha256


def test_another_time_is_another_table(table):
    shape = next(iter(table.blocks))
    first, *rest = table.blocks[shape]
    slower = TimedRanks(ranks=first.ranks, ms=first.ms + 1e-6, spread_ms=first.spread_ms)
    other = made_up_table(plain(), blocks={**table.blocks, shape: (slower, *rest)})
    assert other.sha256 != table.sha256


def _changed(change):
    document = json.loads(made_up_table(plain()).canonical())
    change(document)
    return json.dumps(document).encode()


def _block(document):
    return document["blocks"][0]


HOSTILE = {
    "empty": (b"", "not a JSON"),
    "not text": (b"\xff\xfe", "not a JSON"),
    "deep": (b"[" * 200_000, "not a JSON"),
    "long number": (b'{"batch": ' + b"9" * 10_000 + b"}", "not a JSON"),
    "nan": (b'{"batch": NaN}', "NaN"),
    "repeated key": (b'{"batch": 1, "batch": 2}', "given twice"),
    "a list": (b"[]", "the top level"),
    "unknown key": (_changed(lambda d: d.update(extra=1)), "extra"),
    "other format": (_changed(lambda d: d.update(format="x")), "format"),
    "no blocks": (_changed(lambda d: d.pop("blocks")), "blocks"),
    "zero threads": (_changed(lambda d: d.update(threads=0)), "threads"),
    "infinite": (
        _changed(lambda d: d["network"].update(ms=0.125)).replace(b"0.125", b"1e999"),
        "no finite number",
    ),
    "negative": (_changed(lambda d: _block(d)["forms"][0].update(ms=-1.0)), "ms"),
    "no ranks": (_changed(lambda d: _block(d)["forms"][0].pop("ranks")), "ranks"),
    "three ranks": (_changed(lambda d: _block(d)["forms"][1].update(ranks=[1, 1, 1])), "ranks"),
    "rank zero": (_changed(lambda d: _block(d)["forms"][1].update(ranks=[0, 1])), "ranks"),
    "huge rank": (_changed(lambda d: _block(d)["forms"][1].update(ranks=[999, 1])), "do not fit"),
    "form twice": (_changed(lambda d: _block(d)["forms"].append(_block(d)["forms"][1])), "twice"),
    "layer twice": (_changed(lambda d: d["blocks"].append(_block(d))), "same layer"),
    "no whole": (_changed(lambda d: _block(d)["forms"].pop(0)), "lacks the one convolution"),
    "true": (_changed(lambda d: _block(d)["forms"][0].update(ms=True)), "ms"),
    "long name": (_changed(lambda d: d.update(device="x" * 10_000)), "device"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_are_refused_in_one_line(name):
    contents, words = HOSTILE[name]
    with pytest.raises(UsageError, match=words) as refusal:
        parse_latency_table(contents, where="table.json")
    assert refusal.value.exit_code == 2
    assert str(refusal.value).startswith("table.json: ")
    assert len(str(refusal.value)) < 600


def test_a_missing_or_huge_table_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_latency_table(tmp_path / "none.json")
    (tmp_path / "huge.json").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_latency_table(tmp_path / "huge.json")
