"""Call a builder with what it asks for: the classes, by whatever name it knows them, and the rest.

A parameter is given by its name alone, and only those that are listed here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from edgeclean.networks.state import ModelSpec

# PyTorch's, torchvision's and timm's own word is num_classes; the others are those of papers' code.
CLASSES = (
    *("classes", "num_classes", "n_classes", "nclasses", "num_class", "n_class", "nclass"),
    *("nb_classes", "nb_class", "class_num", "class_count", "num_labels"),
    *("n_cls", "num_cls", "ncls"),
)
CHANNELS = ("in_chans", "in_channels", "input_channels", "num_channels", "n_channels", "in_ch")
# Given only where the builder cannot do without: with a default it may be a width of its own.
OUTPUTS = ("out_features", "num_outputs", "n_outputs", "output_dim", "out_dim", "nc")
SIDES = ("img_size", "image_size", "input_size", "resolution")
_REFUSED = re.compile(r"(?:unexpected keyword|multiple values for(?: keyword)?) argument '(\w+)'")
_USUAL_CHANNELS = (1, 3)


def call_builder(builder: Callable[..., Any], spec: ModelSpec) -> Any:
    """Return what the builder returns.

    Args:
        builder: a function, a class or a ``functools.partial``. Of its parameters, those called as
            in this module are given. One that takes ``**kwargs`` is offered every word for the
            classes that it does not name itself, and those that a class further down refuses are
            taken back.
        spec: the classes and the input shape.

    Raises:
        Exception: whatever the builder raises.
    """
    try:
        parameters = list(inspect.signature(builder).parameters.values())
    except ValueError:  # a callable of C has none that can be read
        parameters = []
    positional = [
        _given(one, spec)[one.name]
        for one in parameters
        if one.kind is one.POSITIONAL_ONLY and one.name in _given(one, spec)
    ]
    named: dict[str, Any] = {}
    for one in parameters:
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            named.update(_given(one, spec))
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        return builder(*positional, **named)
    offered = _offered(named, spec)
    while True:
        try:
            return builder(*positional, **named, **offered)
        except Exception as error:  # noqa: BLE001 - tried without below, and raised there
            refused = _REFUSED.search(str(error)) if isinstance(error, TypeError) else None
            if refused is None or refused[1] not in offered:
                break
            del offered[refused[1]]
    # Code that checks them itself refuses them in words of its own: then one at a time, then none.
    for word in ("num_classes", *offered):
        if word in offered:
            with suppress(Exception):
                return builder(*positional, **named, **{word: offered[word]})
    return builder(*positional, **named)


def _given(parameter: inspect.Parameter, spec: ModelSpec) -> Mapping[str, Any]:
    """Return the parameter's value by its name, or nothing."""
    name, needed = parameter.name, parameter.default is parameter.empty
    channels, height, width = spec.input_shape
    if name in CLASSES or (needed and name in OUTPUTS):
        return {name: spec.classes}
    if name == "input_shape":
        return {name: spec.input_shape}
    if name in CHANNELS and (needed or parameter.default in _USUAL_CHANNELS):
        return {name: channels}
    if name in SIDES and needed:
        return {name: height if height == width else (height, width)}
    # Their weights would be downloaded.
    if name == "pretrained" and parameter.default is True:
        return {name: False}
    if name == "weights" and isinstance(parameter.default, str | Enum):
        return {name: None}
    return {}


def _offered(named: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Return what ``**kwargs`` are given beside the parameters that have a name."""
    words: dict[str, Any] = {"input_shape": spec.input_shape}
    if not any(word in named for word in CLASSES):
        words |= dict.fromkeys(CLASSES, spec.classes)
    if spec.input_shape[0] != 3 and not any(word in named for word in CHANNELS):
        words |= dict.fromkeys(CHANNELS, spec.input_shape[0])
    return {word: value for word, value in words.items() if word not in named}
