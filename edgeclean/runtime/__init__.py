"""ONNX files checked, run and timed."""
