"""Signatures, forms and the file of a latency table."""

import itertools
import json

import pytest
import torch
from factor_networks import plain
from latency_tables import made_up_table
from torch import nn

from edgeclean.compress.factorisation import part_shapes
from edgeclean.compress.fit import WeightFit
from edgeclean.compress.latency_file import MAX_FILE_BYTES, parse_latency_table, read_latency_table
from edgeclean.compress.latency_table import TimedRanks
from edgeclean.compress.rank_grid import measured_grid, rank_steps
from edgeclean.compress.tucker import factorise
from edgeclean.errors import UsageError
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import conv_shape
from edgeclean.runtime.block_backends import chain_module


@pytest.fixture(scope="module")
def table():
    return made_up_table(plain())


# shapes and forms


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 12, 3, padding=1, stride=2),
        nn.Conv2d(8, 12, (1, 4), padding="same", dilation=(1, 2)),
        nn.Conv2d(8, 12, 5, padding="valid"),
        nn.Conv2d(24, 16, 1, stride=2),
    ],
)
def test_a_shape_knows_its_layers_output_and_forms_cost(conv):
    shape = conv_shape(conv, (13, 9))
    image = torch.zeros(1, conv.in_channels, 13, 9)
    assert shape.image_out == tuple(conv(image).shape[2:])
    fit = WeightFit(factorise(conv.weight), (conv.out_channels, conv.in_channels))
    for ranks in [(8, 8)] if shape.pointwise else [(4, 4), (12, 4), (4, 8)]:
        block = fit.at(ranks).to_block(conv)
        made = part_shapes(shape, ranks)
        assert len(made) == len(block)
        assert sum(one.macs for one in made) == count_macs(block, tuple(image.shape[1:]))
        weights = count_params(block) - conv.out_channels  # all but the bias
        assert sum(one.params for one in made) == weights
        assert chain_module(made)(image).shape == conv(image).shape


def test_layers_that_run_twice_or_never_have_no_shape():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.never = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, images):
            return self.twice(self.twice(self.once(input=images)))

    assert set(conv_shapes(trace_layers(Odd(), (3, 5, 7)))) == {"once"}


def test_the_grid_only_has_forms_that_save_a_tenth():
    shape = conv_shape(nn.Conv2d(64, 128, 3, padding=1, stride=2), (14, 14))
    forms = measured_grid(shape)
    assert len(forms) == len(set(forms)) > 10
    for ranks in forms:
        parts = part_shapes(shape, ranks)
        assert sum(one.macs for one in parts) <= 0.9 * shape.macs
        assert sum(one.params for one in parts) <= 0.9 * shape.params


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 16, 24, 64, 100, 512, 2048])
def test_rank_steps_rise_to_all_channels_by_an_eighth(channels):
    steps = rank_steps(channels)
    assert steps[-1] == channels
    assert all(
        low < high <= max(low + 16, 1.125 * low + 8) for low, high in itertools.pairwise(steps)
    )


# the file


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
        "ms",
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
