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
BEFORE = f"{OURS} (before)"
CALIBRATION_IMAGES = 32
# Largest difference of logits, relative to the largest one. Rounding may change a bit.
BINARY_TOLERANCE = 0.02

PACKED_FILE = "program.safetensors"
TWIN_FILE = "float_twin.npz"
SCRIPT_FILE = "torchscript.pt"
STATE_FILE = "torch_state.pt"
ONNX_FILE = "float.onnx"
INT8_FILE = "int8_qdq.onnx"
OPENVINO_BINARY_FILE = "openvino_1bit.bin"
OPENVINO_FIXED_FILE = "openvino_1bit_fixed.bin"
MNN_FILE = "int8_weights.mnn"
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
    from siman_jax.packed.notes import Notes
    from siman_jax.packed.program_file import PackedProgram, write_program
    from siman_jax.program.trace import trace

    model = build_model(
        case.network,
        num_classes=case.num_classes,
        width=case.width,
        weight_rule="half_half",
        activation_rule="siman",
    )
    shape = (case.image_size, case.image_size, 3)
    program = trace(model, random_variables(model, case), shape)
    notes = Notes(mean=(0.5,) * 3, std=(0.25,) * 3)  # for those who pass pixels
    write_program(folder / PACKED_FILE, PackedProgram(program, notes.as_json()))


def load_packed(setting: Setting) -> Run:
    """Read the model file and run it as `siman_jax.load` does, which also normalizes images."""
    from siman_jax.native.shared import load
    from siman_jax.packed.program_file import read_program
    from siman_jax.program.native import native_network

    if load() is None:
        raise ModuleNotFoundError("siman-jax was built without its native library")
    network = native_network(read_program(setting.folder / PACKED_FILE).program)
    return partial(network, threads=setting.threads)


def load_interpreted(setting: Setting) -> Run:
    """Compile the model file by XLA alone, as `siman_jax.load` does without the native library."""
    import jax
    import numpy as np

    from siman_jax.packed.program_file import read_program
    from siman_jax.program.interpret import interpret

    program = read_program(setting.folder / PACKED_FILE).program
    logits = jax.jit(partial(interpret, program, native=False))
    return lambda images: np.asarray(logits(images))


def prepare_before(case: Case, folder: Path) -> None:
    """Say that another checkout runs its engine by its own files."""
    raise ModuleNotFoundError("no other checkout was given")


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


def load_openvino(setting: Setting, file: str, precision: str = "") -> Run:
    """Compile a network in OpenVINO for one shape and low latency.

    Args:
      setting: what to load it for.
      file: an ONNX file, or the .bin file of OpenVINO's own format.
      precision: of real numbers; OpenVINO's default for this processor if empty.
    """
    import openvino

    core = openvino.Core()
    path = setting.folder / file
    model = core.read_model(path.with_suffix(".xml") if path.suffix == ".bin" else path)
    size = setting.case.image_size
    model.reshape([setting.batch, 3, size, size])
    options = {"INFERENCE_NUM_THREADS": setting.threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)[0]


def prepare_openvino_binary(case: Case, folder: Path, *, fixed: bool) -> None:
    """Write this project's network for OpenVINO's 1-bit convolution, and compare its logits.

    Raises:
      ValueError: OpenVINO computes something else.
    """
    import numpy as np

    from benchmarks.openvino_binary import with_fixed_thresholds, write
    from siman_jax.packed.program_file import read_program
    from siman_jax.program.native import native_network

    if not (folder / PACKED_FILE).exists():
        prepare_packed(case, folder)
    program = read_program(folder / PACKED_FILE).program
    if fixed:
        program = with_fixed_thresholds(program)
    file = OPENVINO_FIXED_FILE if fixed else OPENVINO_BINARY_FILE
    write(program, (folder / file).with_suffix(".xml"))
    images = random_images(case, 2, channels_first=False)
    expected = native_network(program)(images)
    run = load_openvino(Setting(case, folder, len(images), 1), file, precision="f32")
    found = run(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    difference = float(abs(found - expected).max() / abs(expected).max())
    if not difference < BINARY_TOLERANCE:
        raise ValueError(f"OpenVINO's logits differ by {difference:.2g} of the largest")


# MNN and Larq Compute Engine. Their functions are in other files, which need their packages.


def prepare_mnn(case: Case, folder: Path) -> None:
    """Convert the float network."""
    from benchmarks.mnn_network import convert

    if not (folder / ONNX_FILE).exists():
        prepare_onnx(case, folder)
    convert(folder / ONNX_FILE, folder / MNN_FILE)


def load_mnn(setting: Setting) -> Run:
    """Open the converted network."""
    from benchmarks.mnn_network import open_session

    shape = (setting.batch, 3, setting.case.image_size, setting.case.image_size)
    return open_session(setting.folder / MNN_FILE, shape, setting.threads)


def prepare_larq(case: Case, folder: Path) -> None:
    """Convert a Larq network."""
    from benchmarks.larq_network import convert

    convert(case, folder / LARQ_FILE)


def load_larq(setting: Setting) -> Run:
    """Open the converted network."""
    from benchmarks.larq_network import open_interpreter

    return open_interpreter(setting.folder / LARQ_FILE, setting.threads)


_JAX = ("numpy", "jax", "jax.numpy", "siman_jax.models", "siman_jax.packed.program_file")
_NUMPY = ("numpy", "siman_jax.packed.program_file", "siman_jax.program.native")
_TORCH = ("numpy", "torch")
_packed = partial(
    Engine,
    PACKED_FILE,
    install="a siman-jax that has it",
    interpreter="jax",
    channels_first=False,
)
_onnx_install = "pip install torch onnx onnxscript onnxruntime"
_onnxruntime = partial(Engine, modules=("numpy", "onnxruntime"), install=_onnx_install)
_openvino = partial(Engine, modules=("numpy", "openvino"), install=f"{_onnx_install} openvino")

# By name, in the order of tables and charts.
ENGINES: dict[str, Engine] = {
    OURS: _packed(prepare_packed, load_packed, _NUMPY),
    BEFORE: _packed(prepare_before, load_packed, _NUMPY)._replace(
        install="see --before", interpreter="before"
    ),
    "siman-jax packed (XLA only)": _packed(prepare_packed, load_interpreted, _JAX),
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
    "OpenVINO 1-bit (mean per sample)": _openvino(
        OPENVINO_BINARY_FILE,
        partial(prepare_openvino_binary, fixed=False),
        partial(load_openvino, file=OPENVINO_BINARY_FILE, precision="f32"),
    ),
    "OpenVINO 1-bit (signs about zero)": _openvino(
        OPENVINO_FIXED_FILE,
        partial(prepare_openvino_binary, fixed=True),
        partial(load_openvino, file=OPENVINO_FIXED_FILE),
    ),
    "MNN (int8 weights)": Engine(
        MNN_FILE, prepare_mnn, load_mnn, ("numpy", "MNN"), f"{_onnx_install} mnn"
    ),
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
