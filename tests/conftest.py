"""Its presence puts this folder on the import path: `from zoo import zoo_network`."""

import os

# Workers side by side share the cores out: threads that wait for each other's core spin, and a test
# of seconds takes minutes. Before torch is loaded, which reads this once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import edgeclean  # noqa: F401 - before any test loads ONNX Runtime: see edgeclean/__init__.py
