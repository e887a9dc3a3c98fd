"""The page of a fleet: one file, which asks for nothing and runs its own script alone.

It holds the rows in a short form and draws a hundred at a time, so that it opens at once however
many there are. Every text reaches it as text: names and reasons come from strangers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from edgeclean.files.text import printable

PAGE_MARK = '<meta name="generator" content="edgeclean fleet">'
STATES = ("done", "failed", "waiting")


def render_page(document: str) -> bytes:
    """Return the page of a fleet's document.

    Args:
        document: the text of ``fleet.json``.
    """
    page, script, hashed = _parts()
    rows = json.dumps(_short(json.loads(document)), separators=(",", ":"))
    # Neither an end tag nor a comment can stand in a script element then.
    safe = rows.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    whole = page.replace("@@HASH@@", hashed).replace("@@SCRIPT@@", script)
    return whole.replace("@@FLEET@@", safe).encode()


@cache
def _parts() -> tuple[str, str, str]:
    """Return the page, its script, and the hash by which the page allows that script alone."""
    folder = resources.files("edgeclean.fleet").joinpath("templates")
    page, script = (folder.joinpath(name).read_text("utf-8") for name in ("fleet.html", "fleet.js"))
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page, script, f"sha256-{hashed}"


def _short(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows: a list for each row, in the order that its script knows."""
    networks = {one["name"]: number for number, one in enumerate(document["networks"])}
    targets = _numbered(one["target"] for one in document["cells"])
    goals = _numbered(one["goal"] for one in document["cells"])
    return {
        "counts": document["counts"],
        "engine": document["engine"],
        "edgeclean": document["edgeclean"],
        "targets": list(targets),
        "goals": list(goals),
        "networks": [_network(one) for one in document["networks"]],
        "cells": [
            [networks[one["network"]], targets[one["target"]], goals[one["goal"]], *_cell(one)]
            for one in document["cells"]
        ],
    }


def _numbered(names: Any) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _network(row: Mapping[str, Any]) -> list[Any]:
    suspicions = printable(", ".join(row["suspicions"] or ()))
    return [row["name"], row["verdict"], suspicions, row["trigger"]]


def _cell(row: Mapping[str, Any]) -> list[Any]:
    size, latency, accuracy = row["size"], row["latency"], row["evaluation"]
    error, gates = row["error"], row["gates"] or ()
    return [
        STATES.index(row["state"]),
        _pair(size and size["onnx_bytes"], "original", "compressed"),
        _pair(size and size["macs"], "original", "compressed"),
        _pair(latency, "original_p50_ms", "compressed_p50_ms"),
        _pair(accuracy, "original_accuracy", "compressed_accuracy"),
        [[one["gate"], one["asked"], one["measured"], one["passed"]] for one in gates] or None,
        row["seconds"],
        error and [error["exit_code"], printable(error["message"])],
        bool(row["purified"]),
    ]


def _pair(both: Mapping[str, Any] | None, before: str, after: str) -> list[Any] | None:
    return None if both is None else [both[before], both[after]]
