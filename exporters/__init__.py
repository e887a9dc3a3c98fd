"""Files that other runtimes execute: ONNX and TensorRT, with the checks on them."""

# Switches the telemetry of ONNX Runtime off, which has to happen before that is loaded.
import edgeclean.version  # noqa: F401

# By text: a runtime is imported when it is asked for, and not with the others.
EXPORTERS = {
    "onnxruntime": "exporters.onnx_exporter:OnnxExporter",
    "tensorrt": "exporters.tensorrt_exporter:TensorRTExporter",
    "openvino": "exporters.openvino_exporter:OpenVINOExporter",
    "ncnn": "exporters.ncnn_exporter:NcnnExporter",
    "mnn": "exporters.mnn_exporter:MNNExporter",
    "litert": "exporters.litert_exporter:LiteRTExporter",
    "litert-micro": "exporters.litert_micro_exporter:LiteRTMicroExporter",
    "executorch": "exporters.executorch_exporter:ExecuTorchExporter",
}
