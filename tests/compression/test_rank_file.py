"""The file of rank overrides: what it may say, and what is refused."""

import pytest

from edgeclean.compression.settings import read_rank_file
from edgeclean.errors import UsageError


def test_rank_file(tmp_path):
    path = tmp_path / "ranks.toml"
    path.write_text('"layer1.0.conv1" = [8, 6]\n"layer1.0.conv2" = "keep"\nstem = [3, 3]\n')
    overrides = read_rank_file(path)
    assert overrides.ranks == {"layer1.0.conv1": (8, 6), "stem": (3, 3)}
    assert overrides.keep == ("layer1.0.conv2",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem = [8]", r"stem = \[8\]; give \[r_out, r_in\]"),
        ("stem = [8, 0]", r"stem = \[8, 0\]"),
        ("stem = [8, true]", r"stem = \[8, True\]"),
        ("stem = [8.0, 8]", r"stem = \[8.0, 8\]"),
        ("stem = [8, 1048577]", r"from 1 to 1048576"),
        (f"stem = [8, 0x{'f' * 20_000}]", "'stem' is a number of 80000 bits"),
        ('stem = "kept"', "stem = 'kept'"),
        ("layer1.conv = [1, 1]", "layer1.*in quotes"),
        ("stem = [1, 1", "not a TOML file"),
    ],
)
def test_rank_files_that_are_wrong_are_refused(tmp_path, text, message):
    path = tmp_path / "ranks.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_rank_file(path)


def test_rank_files_that_are_missing_or_huge_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_rank_file(tmp_path / "none.toml")
    huge = tmp_path / "huge.toml"
    huge.write_text("#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_rank_file(huge)
