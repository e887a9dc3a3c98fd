"""Annotations that hold while tests run: types everywhere, and shapes where tensors have them.

What jaxtyping wraps binds its arguments at every call, a quarter of the suite's time where every
function was wrapped: only modules that use it are its, and beartype alone has the others.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from beartype import BeartypeConf
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook

# What beartype alone cannot read: types that only a type checker imports, and a ParamSpec whose
# keywords are another's. jaxtyping leaves out the hints that cannot be resolved.
JAXTYPINGS = ("from jaxtyping import", "TYPE_CHECKING", "ParamSpec", "signal._HANDLER")


def check_types(*packages: str) -> None:
    """Check the annotated functions of packages that are not imported yet, whenever called."""
    own = [name for package in packages for name in _modules_of_jaxtyping(package)]
    install_import_hook(own, "beartype.beartype")
    others = BeartypeConf(claw_skip_package_names=tuple(own), claw_is_pep526=False)
    beartype_packages(packages, conf=others)


def _modules_of_jaxtyping(package: str) -> list[str]:
    """Name the modules of a package that jaxtyping wraps."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent
    return [
        ".".join([package, *path.relative_to(root).with_suffix("").parts])
        for path in sorted(root.rglob("*.py"))
        if path.name != "__init__.py"
        and any(word in path.read_text("utf-8") for word in JAXTYPINGS)
    ]
