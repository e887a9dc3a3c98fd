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


def check_types(*packages: str) -> None:
    """Check the annotated functions of packages that are not imported yet, whenever called."""
    shaped = [name for package in packages for name in _with_shapes(package)]
    install_import_hook(shaped, "beartype.beartype")
    others = BeartypeConf(claw_skip_package_names=tuple(shaped), claw_is_pep526=False)
    beartype_packages(packages, conf=others)


def _with_shapes(package: str) -> list[str]:
    """Name the modules of a package that import jaxtyping."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    root = Path(found.origin).parent
    return [
        ".".join([package, *path.relative_to(root).with_suffix("").parts])
        for path in sorted(root.rglob("*.py"))
        if "from jaxtyping import" in path.read_text("utf-8") and path.name != "__init__.py"
    ]
