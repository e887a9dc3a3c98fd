"""The keys of a JSON document, read from its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

from markdown_tables import code, table

Schema = dict[str, Any]


def schema(name: str) -> Schema:
    """The schema ``name`` of the package."""
    text = resources.files("edgeclean").joinpath(f"schemas/{name}.schema.json").read_text("utf-8")
    found: Schema = json.loads(text)
    return found


def reference(name: str) -> str:
    """One table of all keys, and one for each part that several keys share."""
    whole = schema(name)
    shared = whole.get("$defs", {})
    parts = [_keys(whole)]
    for part, below in shared.items():
        rows = list(_rows(below, ""))
        body = _keys(below) if rows else f"{_kind(below)}\n"
        parts.append(f"### `{part}`\n\n{below.get('description', '')}\n\n{body}")
    return "\n".join(parts)


def _keys(one: Schema) -> str:
    head, rows = ["key", "value", "always there", "meaning"], list(_rows(one, ""))
    if not any(row[-1] for row in rows):
        return table(head[:-1], [row[:-1] for row in rows])
    return table(head, rows)


def _rows(one: Schema, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    required = set(one.get("required", ()))
    for key, below in one.get("properties", {}).items():
        path = f"{prefix}{key}"
        always = "yes" if key in required else "no"
        yield code(path), _kind(below), always, below.get("description", "")
        yield from _rows(below, f"{path}.")
        items = below.get("items")
        if isinstance(items, dict):
            yield from _rows(items, f"{path}[].")
        more = below.get("additionalProperties")
        if isinstance(more, dict):
            yield from _rows(more, f"{path}.NAME.")


def _kind(one: Schema) -> str:
    if "$ref" in one:
        part = one["$ref"].rpartition("/")[2]
        return f"[{part}](#{part})"
    for choice in ("oneOf", "anyOf"):
        if choice in one:
            return " or ".join(dict.fromkeys(_kind(below) for below in one[choice]))
    if "const" in one:
        return code(json.dumps(one["const"]))
    if "enum" in one:
        return ", ".join(code(json.dumps(value)) for value in one["enum"])
    kinds = one.get("type", "any")
    kind = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    if kind == "array" and isinstance(one.get("items"), dict) and one["items"]:
        kind = f"list of {_kind(one['items'])}"
    more = one.get("additionalProperties")
    if kind == "object" and isinstance(more, dict) and "properties" not in one:
        kind = f"object of {_kind(more)}"
    return kind + _bounds(one)


def _bounds(one: Schema) -> str:
    words = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "above",
        "exclusiveMaximum": "below",
        "pattern": "matching",
    }
    said = [f"{word} {code(one[key])}" for key, word in words.items() if key in one]
    return f", {', '.join(said)}" if said else ""
