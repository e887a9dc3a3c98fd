"""Files that other runtimes execute: ONNX and TensorRT, with the checks on them."""

# Switches the telemetry of ONNX Runtime off, which has to happen before that is loaded.
import edgeclean.version  # noqa: F401
