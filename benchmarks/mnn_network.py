"""The float network in MNN, with its weights in int8.

MNN then computes in float, as its convolutions with activations in int8 are out of reach here: the
quantizer of MNN's wheel 3.6.1 ends with an error (`std::length_error`), and quantizing activations
in each call takes many times as long as computing in float.

MNN's commands also install a package and report to its makers, so the function behind the converter
is called here.
"""

from pathlib import Path
from typing import Any

import _tools  # of MNN
import MNN
import numpy as np

from benchmarks.case import Run


def convert(onnx: Path, path: Path) -> None:
    """Convert an ONNX file to MNN's format, with weights in int8.

    Raises:
      ValueError: MNN has not written the file.
    """
    files = ["--modelFile", str(onnx), "--MNNModel", str(path)]
    settings = ["--bizCode", "benchmark", "--weightQuantBits", "8"]
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, *settings])
    if not path.exists():
        raise ValueError("MNN has not converted the network")


def open_session(path: Path, shape: tuple[int, ...], threads: int) -> Run:
    """Open a file of MNN for images `[batch, 3, height, width]` of one shape."""
    interpreter = MNN.Interpreter(str(path))
    session = interpreter.createSession({"backend": "CPU", "numThread": threads})
    device = interpreter.getSessionInput(session)
    interpreter.resizeTensor(device, shape)
    interpreter.resizeSession(session)
    of_float, order = MNN.Halide_Type_Float, MNN.Tensor_DimensionType_Caffe

    def run(images: Any) -> Any:
        device.copyFrom(MNN.Tensor(shape, of_float, images, order))
        interpreter.runSession(session)  # also keeps the interpreter, which the session needs
        result = interpreter.getSessionOutput(session)
        logits = np.empty(result.getShape(), np.float32)
        host = MNN.Tensor(result.getShape(), of_float, logits, order)
        result.copyToHostTensor(host)
        return np.array(host.getNumpyData())

    return run
