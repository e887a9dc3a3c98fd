"""TOML: model files come with a checkpoint; configurations and targets are the user's own.

The first are input (exit 3); a mistake in the others is one of usage (exit 2).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from hostile_case import CANARY, CODE, MODEL_TOML, Case, compressing, hole
from pickle_writing import tiny_weights


def model_file(content: bytes) -> Callable[[Path], list[str]]:
    """A good checkpoint with this model.toml."""

    def build(folder: Path) -> list[str]:
        (folder / "m.toml").write_bytes(content)
        return weights(folder, "--model", "m.toml")

    return build


def weights(folder: Path, *words: str) -> list[str]:
    """A good checkpoint, read with these words."""
    (folder / "net.py").write_text(CODE, encoding="utf-8")
    (folder / "model.toml").write_text(MODEL_TOML, encoding="utf-8")
    content = safetensors.torch.save(tiny_weights())
    return compressing(folder, "a.safetensors", content, *words)


def changed(key: str, entry: str) -> bytes:
    """The good model file with one key changed."""
    kept = [line for line in MODEL_TOML.splitlines() if not line.startswith(f"{key} =")]
    return "\n".join([*kept, f"{key} = {entry}"]).encode()


MODEL_FILES: list[tuple[str, str, bytes, str]] = [
    (
        "no TOML",
        "a script, in the hope that it is sourced",
        b"#!/bin/sh\ntouch canary\n",
        "not a TOML",
    ),
    ("not UTF-8", "a damaged file", b"\xff\xfe", "not a TOML file"),
    (
        "deep",
        "brackets that overflow a parser that recurses",
        b"a = " + b"[" * 30_000,
        "not a TOML file",
    ),
    (
        "long key",
        "a key of 32,000 parts: the parser takes time and memory by its square",
        b"a" + b".a" * 32_000 + b" = 1",
        "a key has more than 16 parts",
    ),
    (
        "long heading",
        "the same in a table's name, behind a text that seems to go on",
        b'x = """a"""""\n[' + b"'.'." * 16_000 + b"a]\n",
        "a key has more than 16 parts",
    ),
    ("64 KiB", "a megabyte of comment", b"#" * 2**20, "larger than 65536 bytes"),
    (
        "key twice",
        "two answers to one question",
        MODEL_TOML.encode() + b"classes = 3\n",
        "not a TOML file",
    ),
    (
        "unknown key",
        "a key from a future in which it means something",
        changed("exec", '"x"'),
        "unknown key 'exec'",
    ),
    ("key that steers", "a key with escape sequences", changed('"\\u001b[2J"', "1"), "unknown key"),
    (
        "huge image",
        "100,000 pixels a side",
        changed("input-shape", "[3, 100000, 100000]"),
        r"1\.\.4096",
    ),
    ("no image", "a side of 0", changed("input-shape", "[3, 0, 4]"), r"1\.\.4096"),
    ("true as a number", "bool is an int to Python", changed("classes", "true"), "whole number"),
    ("huge classes", "10^12 classes", changed("classes", "1000000000000"), r"2\.\.65536"),
    (
        "huge integer",
        "a number of 5,000 digits",
        changed("classes", "9" * 5000),
        "not a TOML file",
    ),
    ("NaN mean", "every pixel becomes NaN", changed("mean", "[nan, 0.0, 0.0]"), "finite numbers"),
    ("zero std", "a division by zero", changed("std", "[0.0, 1.0, 1.0]"), "above zero"),
    ("one mean", "one number for three channels", changed("mean", "[0.5]"), "one per channel"),
    (
        "long architecture",
        "a name of a kilobyte",
        changed("architecture", f'"{"a" * 1000}"'),
        "a name of the table",
    ),
    (
        "architecture with a line break",
        "waiting to be printed",
        changed("architecture", '"a\\nb"'),
        "a name of the table",
    ),
    (
        "half a file",
        "some keys are missing",
        b'architecture = "net.py:tiny"\n',
        "give --input-shape",
    ),
]
CONFIGS: list[tuple[str, str, bytes, str]] = [
    ("no TOML", "a script", b"import os\n", "not a TOML file"),
    ("deep", "brackets without an end", b"a = " + b"[" * 30_000, "not a TOML file"),
    ("2 MiB", "a comment without an end", b"#" * 2**21, "larger than 1048576 bytes"),
    ("long key", "a megabyte of dots", b"a" + b".a" * 500_000 + b" = 1", "more than 16 parts"),
    (
        "long keys",
        "headings of 32 parts without an end, each of another name",
        b"".join(b"[a%d" % index + b".b" * 31 + b"]\n" for index in range(14_000)),
        "more than 16 parts",
    ),
    (
        "switch that is not there",
        "asks for unsafe loading, should there be such a switch",
        b"[load]\nweights_only = false\n",
        "unknown key 'weights_only'",
    ),
    (
        "code in a setting",
        "an expression, in the hope that it is evaluated",
        f"seed = \"__import__('os').system('touch {CANARY}')\"\n".encode(),
        "must be a whole number",
    ),
    (
        "limit of zero",
        "a limit that would refuse everything",
        b"[load]\nentries = 0\n",
        "entries is 0; it must be a whole number from 1",
    ),
    (
        "target that climbs",
        "a target's name that is a path",
        b'target = "../../../etc/passwd"\n',
        "is not known",
    ),
    ("huge ratio", "a ratio that is no number", b"[ranks]\nratio = nan\n", "ratio"),
]


def _config(content: bytes, option: str = "--config") -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        (folder / "c.toml").write_bytes(content)
        return weights(folder, "--model", "model.toml", option, "c.toml")

    return build


def _sparse_model_file(folder: Path) -> list[str]:
    hole(folder / "m.toml", 3 * 2**30)
    return weights(folder, "--model", "m.toml")


SETTINGS = [
    *(
        Case(
            kind="model.toml",
            name=name,
            story=story,
            build=model_file(content),
            message=message,
            code=2 if name == "half a file" else 3,
        )
        for name, story, content, message in MODEL_FILES
    ),
    Case(
        kind="model.toml",
        name="3 GiB of nothing",
        story="a sparse file",
        build=_sparse_model_file,
        message="larger than 65536 bytes",
    ),
    *(
        Case(
            kind="config",
            name=name,
            story=story,
            build=_config(content),
            message=message,
            code=2,
        )
        for name, story, content, message in CONFIGS
    ),
    *(
        Case(
            kind="target",
            name=name,
            story=story,
            build=_config(content, "--target-file"),
            message=message,
            code=2,
        )
        for name, story, content, message in (
            ("no TOML", "a script", b"import os\n", "not a TOML file"),
            ("deep", "brackets without an end", b"a = " + b"[" * 30_000, "not a TOML file"),
            ("unknown base", "extends a path", b'name = "x"\nextends = "../../x"\n', "."),
            ("2 MiB", "a comment without an end", b"#" * 2**21, "larger than"),
            ("long key", "a megabyte of dots", b"a" + b".a" * 500_000 + b"=1", "16 parts"),
        )
    ),
    *(
        Case(
            kind="ranks",
            name=name,
            story=story,
            build=_config(content, "--ranks-file"),
            message=message,
            code=2,
        )
        for name, story, content, message in (
            ("no TOML", "a script", b"import os\n", "not a TOML file"),
            ("deep", "brackets without an end", b"a = " + b"[" * 30_000, "not a TOML file"),
            ("2 MiB", "a comment without an end", b"#" * 2**21, "larger than 1048576 bytes"),
            ("long key", "a megabyte of dots", b"a" + b".a" * 500_000 + b"=2", "16 parts"),
            ("ranks below one", "a rank of 0", b'"0" = [0, 1]\n', "whole numbers from 1"),
        )
    ),
]
