"""ONNX files: guarded, then rebuilt from stock torch layers."""
