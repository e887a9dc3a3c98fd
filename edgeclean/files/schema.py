"""The JSON schemas that are shipped in ``edgeclean/schemas``, and checks of documents by them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from edgeclean.files.text import printable

MOST_CHARACTERS = 200  # of the place, and of the message: a document may hold a key of megabytes
_GAP = " ... "


def first_violation(document: object, name: str) -> str | None:
    """Say in one bounded line where a document departs from a schema; None where it keeps to it.

    Args:
        document: what a JSON or TOML reader returned.
        name: of the schema: "manifest" stands for ``schemas/manifest.schema.json``.

    Returns:
        "at PLACE: MESSAGE", at most about 400 printable characters.
    """
    import jsonschema

    error = jsonschema.exceptions.best_match(validator(name).iter_errors(document))
    if error is None:
        return None
    place = "/".join(str(step) for step in error.absolute_path) or "the top level"
    return f"at {_bounded(place)}: {_bounded(error.message)}"


@cache
def validator(name: str) -> Any:
    """Return the validator of ``schemas/NAME.schema.json``, which is read once."""
    schema = resources.files("edgeclean").joinpath(f"schemas/{name}.schema.json")
    return _strict_validator()(json.loads(schema.read_text(encoding="utf-8")))


@cache
def _strict_validator() -> Any:
    """Return the class of validators that are stricter than the library's own, and as fast.

    For them 5.0 is no integer, as it is in JSON Schema: code that counts with it, and a C header,
    take none.
    """
    import jsonschema  # up to a second and a half, which a command that reads no document saves

    draft = jsonschema.Draft202012Validator
    whole = draft.TYPE_CHECKER.redefine("integer", _is_whole)
    own = {"pattern": _check_pattern, "uniqueItems": _check_unique}
    return jsonschema.validators.extend(draft, own, type_checker=whole)


def _is_whole(_checker: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_pattern(checker: Any, pattern: str, value: object, _schema: object) -> Iterator[Any]:
    """Yield an error where a text does not match; a final "$" is its end, as in ECMA 262.

    To Python's "$", a line end may follow.
    """
    import jsonschema

    if not checker.is_type(value, "string"):
        return
    whole = re.sub(r"(?<!\\)\$$", r"\\Z", pattern)
    if not re.search(whole, str(value)):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


def _check_unique(checker: Any, wanted: bool, value: Any, _schema: object) -> Iterator[Any]:
    """Yield an error where a list holds something twice.

    The library compares each item with each where they cannot be sorted, before it looks at how
    many there may be.
    """
    import jsonschema

    if not wanted or not checker.is_type(value, "array"):
        return
    if len({json.dumps(item, sort_keys=True, default=repr) for item in value}) < len(value):
        yield jsonschema.ValidationError(f"{value!r} has non-unique elements")


def _bounded(text: str) -> str:
    """Return its beginning and its end: a message names a value first, and what is wrong last."""
    if len(text) > MOST_CHARACTERS:
        half = (MOST_CHARACTERS - len(_GAP)) // 2
        text = f"{text[:half]}{_GAP}{text[-half:]}"
    return printable(text)[:MOST_CHARACTERS]
