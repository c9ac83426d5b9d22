"""The engines that `packed_inference` compares: this project and its alternatives.

An engine first prepares its model file in one process, then loads it in another one that imports
only what its runtime needs. `load` returns a function from a float32 array of normalized images in
the host's memory to an array of logits there, so times include packing, transfers and dispatch.

The float networks are ordinary ones of the same depth, width and resolution (see `float_networks`),
since float networks do not need the extra shortcuts and PReLUs of a 1-bit network. "float twin" is
this project's own network with nothing binarized.

This module must also run on Python 3.10, which Larq Compute Engine needs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.case import Case, Run

OURS = "siman-jax packed"
CALIBRATION_IMAGES = 32

PACKED_FILE = "packed.safetensors"
TWIN_FILE = "float_twin.npz"
SCRIPT_FILE = "torchscript.pt"
STATE_FILE = "torch_state.pt"
ONNX_FILE = "float.onnx"
INT8_FILE = "int8_qdq.onnx"
LARQ_FILE = "larq.tflite"


class Setting(NamedTuple):
    """The setting that an engine is loaded for.

    Attributes:
      case: network and input.
      folder: folder with the files that `prepare` wrote.
      batch: images per call.
      threads: threads per call.
    """

    case: Case
    folder: Path
    batch: int
    threads: int


class Engine(NamedTuple):
    """One way to run a network.

    Attributes:
      file: name of the model file.
      prepare: writes the model file into a folder.
      load: returns the function from images to logits.
      modules: imports of its runtime; memory is measured after them.
      install: how to install it.
      interpreter: the Python that runs it: "jax", "lce", or "here" for the benchmark's own.
      channels_first: whether images are `[batch, 3, height, width]`.
    """

    file: str
    prepare: Callable[[Case, Path], None]
    load: Callable[[Setting], Run]
    modules: tuple[str, ...]
    install: str
    interpreter: str = "here"
    channels_first: bool = True


def random_images(case: Case, batch: int, *, channels_first: bool) -> Any:
    """Draw normalized images."""
    import numpy as np

    size = case.image_size
    shape = (batch, 3, size, size) if channels_first else (batch, size, size, 3)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# This project.


def random_variables(model: Any, case: Case) -> Any:
    """Draw a network's variables, with batch norms as after training.

    ResNet-18's initial batch norms scale by 1e-8, unlike those of a trained network.
    """
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    images = random_images(case, 1, channels_first=False)
    init = jax.jit(partial(model.init, train=False))
    leaves = flatten_dict(init(jax.random.key(0), images))
    for index, (path, leaf) in enumerate(sorted(leaves.items())):
        key = jax.random.fold_in(jax.random.key(1), index)
        if path[-1] in ("scale", "var"):
            leaves[path] = jax.random.uniform(key, leaf.shape, minval=0.5, maxval=1.5)
        elif path[-1] in ("bias", "mean"):
            leaves[path] = 0.1 * jax.random.normal(key, leaf.shape)
    return unflatten_dict(leaves)


def prepare_packed(case: Case, folder: Path) -> None:
    """Pack a network and write its model file."""
    from siman_jax.models import build_model
    from siman_jax.packed.program_file import PackedProgram, write_program
    from siman_jax.program.trace import trace

    model = build_model(case.network, case.num_classes, width=case.width)
    shape = (case.image_size, case.image_size, 3)
    program = trace(model, random_variables(model, case), shape)
    write_program(folder / PACKED_FILE, PackedProgram(program))


def load_packed(setting: Setting) -> Run:
    """Read the model file and prepare it as `siman_jax.load` does."""
    from siman_jax.native.shared import load
    from siman_jax.packed.program_file import read_program
    from siman_jax.program.native import native_network

    if load() is None:
        raise ModuleNotFoundError("siman-jax was built without its native library")
    network = native_network(read_program(setting.folder / PACKED_FILE).program)
    return partial(network, threads=setting.threads)


def load_packed_by_xla(setting: Setting) -> Run:
    """Read the model file and compile it by XLA alone, with weights as constants."""
    import jax
    import numpy as np

    from siman_jax.packed.program_file import read_program
    from siman_jax.program.interpret import interpret

    program = read_program(setting.folder / PACKED_FILE).program
    logits = jax.jit(partial(interpret, program, native=False))
    return lambda images: np.asarray(logits(images))


def _twin(case: Case) -> Any:
    from siman_jax.models import build_model

    return build_model(
        case.network,
        num_classes=case.num_classes,
        width=case.width,
        weight_rule="real",
        activation_rule="real",
    )


def prepare_twin(case: Case, folder: Path) -> None:
    """Write the variables of this project's real-valued network."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    leaves = flatten_dict(random_variables(_twin(case), case), sep="/")
    np.savez(folder / TWIN_FILE, **leaves)


def load_twin(setting: Setting) -> Run:
    """Compile this project's real-valued network."""
    import jax
    import numpy as np
    from flax.traverse_util import unflatten_dict

    with np.load(setting.folder / TWIN_FILE) as file:
        leaves = {name: jax.numpy.asarray(file[name]) for name in file.files}
    variables = unflatten_dict(leaves, sep="/")
    apply = jax.jit(partial(_twin(setting.case).apply, train=False))
    return lambda images: np.asarray(apply(variables, images))


# PyTorch.


def _torch_network(case: Case) -> Any:
    import torch

    from benchmarks.float_networks import build_float_network

    torch.manual_seed(0)
    return build_float_network(case.network, case.num_classes, case.width, case.image_size).eval()


def prepare_torchscript(case: Case, folder: Path) -> None:
    """Trace, freeze and save a network in channels-last memory format, which is faster on CPUs."""
    import torch

    network = _torch_network(case).to(memory_format=torch.channels_last)
    images = torch.from_numpy(random_images(case, 1, channels_first=True))
    traced = torch.jit.trace(network, images.to(memory_format=torch.channels_last))
    torch.jit.save(torch.jit.freeze(traced), folder / SCRIPT_FILE)


def load_torchscript(setting: Setting) -> Run:
    """Load the file from `prepare_torchscript`."""
    import torch

    torch.set_num_threads(setting.threads)
    network = torch.jit.load(setting.folder / SCRIPT_FILE)
    return partial(_run_torch, torch, network)


def prepare_torch_state(case: Case, folder: Path) -> None:
    """Save a float network's parameters."""
    import torch

    torch.save(_torch_network(case).state_dict(), folder / STATE_FILE)


def load_torch_compiled(setting: Setting) -> Run:
    """Compile with Inductor, with the parameters as constants."""
    import torch
    import torch._inductor.config

    torch.set_num_threads(setting.threads)
    torch._inductor.config.freezing = True
    network = _torch_network(setting.case)
    network.load_state_dict(torch.load(setting.folder / STATE_FILE))
    network = torch.compile(network.to(memory_format=torch.channels_last), dynamic=False)
    return partial(_run_torch, torch, network)


def _run_torch(torch: Any, network: Any, images: Any) -> Any:
    with torch.inference_mode():
        x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        return network(x).numpy()


# ONNX.


def prepare_onnx(case: Case, folder: Path) -> None:
    """Export the float network for any batch size."""
    import torch

    images = torch.from_numpy(random_images(case, 2, channels_first=True))
    torch.onnx.export(
        _torch_network(case),
        (images,),
        folder / ONNX_FILE,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


def prepare_int8(case: Case, folder: Path) -> None:
    """Quantize to int8: static, QDQ, kernels per channel, calibrated on random images."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            images = random_images(case, CALIBRATION_IMAGES, channels_first=True)
            self._feeds = iter([{"images": images[i : i + 1]} for i in range(len(images))])

        def get_next(self) -> Any:
            return next(self._feeds, None)

    if not (folder / ONNX_FILE).exists():
        prepare_onnx(case, folder)
    preprocessed = folder / "preprocessed.onnx"
    quant_pre_process(folder / ONNX_FILE, preprocessed)
    quantization.quantize_static(
        preprocessed,
        folder / INT8_FILE,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    preprocessed.unlink()


def load_onnxruntime(setting: Setting, file: str) -> Run:
    """Open an ONNX file in ONNX Runtime, with all its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        setting.folder / file, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]


def load_openvino(setting: Setting, file: str) -> Run:
    """Compile an ONNX file in OpenVINO for one shape and low latency, with default precision."""
    import openvino

    core = openvino.Core()
    model = core.read_model(setting.folder / file)
    size = setting.case.image_size
    model.reshape([setting.batch, 3, size, size])
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)[0]


# Larq Compute Engine. Its functions are in another file, which needs its packages.


def prepare_larq(case: Case, folder: Path) -> None:
    """Convert a Larq network."""
    from benchmarks.larq_network import convert

    convert(case, folder / LARQ_FILE)


def load_larq(setting: Setting) -> Run:
    """Open the converted network."""
    from benchmarks.larq_network import open_interpreter

    return open_interpreter(setting.folder / LARQ_FILE, setting.threads)


_JAX = ("numpy", "jax", "jax.numpy", "siman_jax.models", "siman_jax.program.trace")
_TORCH = ("numpy", "torch")
_packed = partial(
    Engine,
    PACKED_FILE,
    prepare_packed,
    modules=_JAX,
    install="a siman-jax that has it",
    interpreter="jax",
    channels_first=False,
)
_onnx_install = "pip install torch onnx onnxscript onnxruntime"
_onnxruntime = partial(Engine, modules=("numpy", "onnxruntime"), install=_onnx_install)
_openvino = partial(Engine, modules=("numpy", "openvino"), install=f"{_onnx_install} openvino")

# By name, in the order of tables and charts.
ENGINES: dict[str, Engine] = {
    OURS: _packed(load=load_packed),
    "siman-jax packed (XLA only)": _packed(load=load_packed_by_xla),
    "siman-jax float twin": Engine(
        TWIN_FILE, prepare_twin, load_twin, _JAX, "pip install -e .", "jax", channels_first=False
    ),
    "PyTorch float (TorchScript)": Engine(
        SCRIPT_FILE, prepare_torchscript, load_torchscript, _TORCH, "pip install torch"
    ),
    "PyTorch float (compiled)": Engine(
        STATE_FILE,
        prepare_torch_state,
        load_torch_compiled,
        (*_TORCH, "torch._inductor.config"),
        "pip install torch, and a C++ compiler",
    ),
    "ONNX Runtime float": _onnxruntime(
        ONNX_FILE, prepare_onnx, partial(load_onnxruntime, file=ONNX_FILE)
    ),
    "ONNX Runtime int8": _onnxruntime(
        INT8_FILE, prepare_int8, partial(load_onnxruntime, file=INT8_FILE)
    ),
    "OpenVINO float": _openvino(ONNX_FILE, prepare_onnx, partial(load_openvino, file=ONNX_FILE)),
    "OpenVINO int8": _openvino(INT8_FILE, prepare_int8, partial(load_openvino, file=INT8_FILE)),
    "Larq Compute Engine": Engine(
        LARQ_FILE,
        prepare_larq,
        load_larq,
        ("numpy", "larq_compute_engine.tflite.python.interpreter"),
        "see benchmarks/larq_network.py, then --lce_python",
        "lce",
        channels_first=False,
    ),
}
