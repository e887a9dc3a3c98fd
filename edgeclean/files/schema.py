"""The JSON schemas that are shipped in ``edgeclean/schemas``, and checks of documents by them."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from edgeclean.files.text import printable

MOST_CHARACTERS = 200  # of the place, and of the message: a document may hold a key of megabytes


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
    """Return the class of validators for which 5.0 is no integer, as it is in JSON Schema.

    Code that counts with it, and a C header, take none.
    """
    import jsonschema  # up to a second and a half, which a command that reads no document saves

    draft = jsonschema.Draft202012Validator
    whole = draft.TYPE_CHECKER.redefine("integer", _is_whole)
    return jsonschema.validators.extend(draft, type_checker=whole)


def _is_whole(_checker: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bounded(text: str) -> str:
    return printable(text[:MOST_CHARACTERS])[:MOST_CHARACTERS]
