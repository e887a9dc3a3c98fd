"""Types and defaults of options and settings in words."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}


def in_words(hint: Any) -> str:
    """A type as a reader of the command line or of a TOML file would call it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(one) for one in arguments if one is not type(None))
    if origin in (tuple, list):
        if len(arguments) == 1 or arguments[1:] == (...,):
            return f"list of {in_words(arguments[0])}"
        return f"list of {len(arguments)}: {', '.join(in_words(one) for one in arguments)}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "table"
    if isinstance(hint, type) and issubclass(hint, str) and hint is not str:
        return ", ".join(str(getattr(one, "value", one)) for one in hint)  # type: ignore[attr-defined]
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def default_in_words(default: object) -> str:
    """A default as TOML would have it; nothing where there is none."""
    if default is None or default is dataclasses.MISSING:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:.4g}"
    if isinstance(default, tuple | list):
        return "[" + ", ".join(default_in_words(one) for one in default) + "]"
    return str(default)
