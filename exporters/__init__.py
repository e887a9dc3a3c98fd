"""One module a runtime: networks as files, the files loaded and run, checked against PyTorch."""

import edgeclean  # noqa: F401 - before ONNX Runtime is loaded, which would report to its maker
