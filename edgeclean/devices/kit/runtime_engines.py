"""Load and run a network in the runtime that is installed on the device.

Plain Python 3.9, the runtime's wheel, and NumPy, which each of them brings: it runs on the device.
What a runtime computes in is always said, for its own default may be another precision.
"""

import importlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, Optional

Run = Callable[[Any], Any]  # one batch [n, c, h, w] of float32 images to logits [n, classes]
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "litert": "ai-edge-litert",
}
MNN_MODES = {"fp32": "high", "fp16": "low", "int8": "high"}


def runtime_version(name: str) -> Optional[str]:
    """Return the installed version of a runtime; None where it is not installed."""
    try:
        return metadata.version(PACKAGES[name])
    except metadata.PackageNotFoundError:
        return None


def open_network(name: str, folder: Path, precision: str, threads: int) -> Run:
    """Load the network in a folder, for this processor.

    Args:
        name: of the runtime.
        folder: with its files.
        precision: fp32, fp16 or int8, that it computes in.
        threads: that it computes with.

    Raises:
        Exception: whatever the runtime raises for a file that it does not take.
    """
    opening: Dict[str, Callable[[Path, str, int], Run]] = {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "ncnn": _ncnn,
        "mnn": _mnn,
        "litert": _litert,
    }
    return opening[name](folder, precision, threads)


def _onnxruntime(folder: Path, precision: str, threads: int) -> Run:
    del precision  # it is the file's
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # a failure comes as an exception, which says the same
    session = runtime.InferenceSession(
        (folder / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _openvino(folder: Path, precision: str, threads: int) -> Run:
    del precision  # it is the file's
    core = importlib.import_module("openvino").Core()
    how = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(str(folder / "model.xml")), "CPU", how)
    request, output = compiled.create_infer_request(), compiled.output(0)
    return lambda images: request.infer({0: images}, share_inputs=True)[output]


def _ncnn(folder: Path, precision: str, threads: int) -> Run:
    import numpy as np

    ncnn = importlib.import_module("ncnn")
    network = ncnn.Net()
    options = network.opt
    options.num_threads = threads
    options.use_vulkan_compute = False
    options.use_bf16_storage = options.use_bf16_packed = False
    half = precision == "fp16"
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
    for read, name in ((network.load_param, "model.param"), (network.load_model, "model.bin")):
        if read(str(folder / name)) != 0:  # it does not raise, and a run after that crashes
            raise ValueError("it cannot load %s" % name)

    def run(images: Any) -> Any:
        extractor = network.create_extractor()
        # A copy of its own: a channel's rows start at multiples of 16 bytes there.
        if extractor.input("in0", ncnn.Mat(np.ascontiguousarray(images[0])).clone()) != 0:
            raise ValueError("it does not take the image")
        code, logits = extractor.extract("out0")
        if code != 0:
            raise ValueError("its return code is %d" % code)
        return np.array(logits)[None]

    return run


def _mnn(folder: Path, precision: str, threads: int) -> Run:
    import numpy as np

    mnn = importlib.import_module("MNN")  # never MNN.tools, which installs packages and calls home
    network = mnn.Interpreter(str(folder / "model.mnn"))
    how = {"backend": "CPU", "precision": MNN_MODES[precision], "numThread": threads}
    session = network.createSession(how)
    (given,) = network.getSessionInputAll(session).values()
    (made,) = network.getSessionOutputAll(session).values()
    plain, kind = mnn.Tensor_DimensionType_Caffe, mnn.Halide_Type_Float

    def run(images: Any) -> Any:
        # It computes on blocks of four channels: a tensor of plain layout goes in and comes out.
        tensor = mnn.Tensor(tuple(images.shape), kind, np.ascontiguousarray(images), plain)
        given.copyFrom(tensor)
        if network.runSession(session) != 0:
            raise ValueError("its session does not run")
        shape = tuple(made.getShape())
        logits = mnn.Tensor(shape, kind, np.zeros(shape, np.float32), plain)
        made.copyToHostTensor(logits)
        return np.array(logits.getNumpyData(), np.float32)

    return run


def _litert(folder: Path, precision: str, threads: int) -> Run:
    del precision  # it is the file's
    import numpy as np

    runtime = importlib.import_module("ai_edge_litert.interpreter")
    content = (folder / "model.tflite").read_bytes()
    interpreter = runtime.Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: Any) -> Any:
        last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        kind, (scale, zero) = np.dtype(given["dtype"]), given["quantization"]
        if kind.kind == "i":
            levels = np.rint(last / np.float32(scale)) + zero
            last = np.clip(levels, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        interpreter.set_tensor(given["index"], last)
        interpreter.invoke()
        logits = interpreter.get_tensor(made["index"])
        scale, zero = made["quantization"]
        whole = logits.dtype.kind == "i"
        return (np.array(logits, np.float32) - zero) * np.float32(scale) if whole else logits

    return run


def golden_tensor(path: Path, name: str) -> Any:
    """Read one float32 tensor of a safetensors file, whose hash was checked.

    Raises:
        ValueError: the file is not of that form, or has no such tensor.
    """
    import numpy as np

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ValueError("the golden images are not whole")
    try:
        entry = json.loads(content[8 : 8 + length].decode("utf-8"))[name]
        first, last = (8 + length + int(place) for place in entry["data_offsets"])
        if entry["dtype"] != "F32":
            raise ValueError(name)
        return np.frombuffer(content[first:last], "<f4").reshape(entry["shape"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("the golden images hold no %s in float32" % name) from None
