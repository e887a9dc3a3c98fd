"""Its presence puts this folder on the import path: `from zoo import zoo_network`."""

import edgeclean  # noqa: F401 - before any test loads ONNX Runtime: see edgeclean/__init__.py
