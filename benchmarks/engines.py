"""What runs the networks of `packed_inference`: this project, and what a user would pick instead.

An engine first prepares its model file, in a process of its own, then loads it in another one that
imports no more than the run-time needs. What `load` gives maps a float32 array of normalized images
in the host's memory to an array of logits there: packing, transfers and dispatch are in the time.

The float networks are plain ones of the same depth, width and resolution (see `float_networks`):
nobody who stays with floats would run a 1-bit network's second shortcuts and PReLUs. "float twin"
is this project's network itself with nothing binarized.

This module runs on Python 3.10 too, because Larq Compute Engine does.
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
    """What an engine is loaded for.

    Attributes:
      case: network and input.
      folder: where `prepare` wrote.
      batch: images of a call.
      threads: that work on a call.
    """

    case: Case
    folder: Path
    batch: int
    threads: int


class Engine(NamedTuple):
    """One way to run a network.

    Attributes:
      file: the model file that `prepare` writes.
      prepare: writes it into a folder.
      load: makes what maps images to logits.
      modules: what the run-time imports, before which memory is not the engine's own.
      install: what installs it.
      interpreter: whose: "jax", "lce", or "here", the one that runs the benchmark.
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
    """Draw a network's variables, with batch norms that have seen something.

    As they start, ResNet-18's batch norms scale by 1e-8, which no trained one does.
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
    from siman_jax.packed.file import PackedNetwork, write_network
    from siman_jax.packed.network import pack_unchecked

    arguments: dict[str, Any] = {
        "num_classes": case.num_classes,
        "width": case.width,
        "weight_rule": "half_half",
        "activation_rule": "siman",
    }
    model = build_model(case.network, **arguments)
    variables = pack_unchecked(model, random_variables(model, case))
    shape = (case.image_size, case.image_size, 3)
    write_network(folder / PACKED_FILE, PackedNetwork(case.network, arguments, shape, variables))


def load_packed(setting: Setting, *, native: bool = True) -> Run:
    """Read the model file and compile it as `siman_jax.load` does, weights as constants."""
    import jax
    import numpy as np

    from siman_jax.native.library import variants
    from siman_jax.packed.file import read_network
    from siman_jax.packed.network import packed_logits

    if native and not variants():
        raise ModuleNotFoundError("siman-jax was built without its native library")
    packed = read_network(setting.folder / PACKED_FILE)
    logits = jax.jit(partial(packed_logits, packed.model(), packed.variables, native=native))
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
    """Trace, freeze and save, in channels-last memory format, the faster one on CPUs."""
    import torch

    network = _torch_network(case).to(memory_format=torch.channels_last)
    images = torch.from_numpy(random_images(case, 1, channels_first=True))
    traced = torch.jit.trace(network, images.to(memory_format=torch.channels_last))
    torch.jit.save(torch.jit.freeze(traced), folder / SCRIPT_FILE)


def load_torchscript(setting: Setting) -> Run:
    """Load what `prepare_torchscript` saved."""
    import torch

    torch.set_num_threads(setting.threads)
    network = torch.jit.load(setting.folder / SCRIPT_FILE)
    return partial(_run_torch, torch, network)


def prepare_torch_state(case: Case, folder: Path) -> None:
    """Save a float network's parameters."""
    import torch

    torch.save(_torch_network(case).state_dict(), folder / STATE_FILE)


def load_torch_compiled(setting: Setting) -> Run:
    """Compile by Inductor, with the parameters as constants."""
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
    """Export the float network, for any number of images."""
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
    """Quantize statically: QDQ, 8 bits, kernels per channel, calibrated on random images."""
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
    """Open an ONNX file in ONNX Runtime, with all of its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        setting.folder / file, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]


def load_openvino(setting: Setting, file: str) -> Run:
    """Compile an ONNX file in OpenVINO for one shape and low latency, precision as it chooses."""
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


# Larq Compute Engine, whose functions stand in a file that is imported where it is installed.


def prepare_larq(case: Case, folder: Path) -> None:
    """Convert a Larq network."""
    from benchmarks.larq_network import convert

    convert(case, folder / LARQ_FILE)


def load_larq(setting: Setting) -> Run:
    """Open the converted network."""
    from benchmarks.larq_network import open_interpreter

    return open_interpreter(setting.folder / LARQ_FILE, setting.threads)


_JAX = ("numpy", "jax", "jax.numpy", "siman_jax.models", "siman_jax.packed.file")
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

# By name, in the order of tables and charts. Other kernels of the packed network are rows like the
# first two: what `load_packed` gets by name goes to `packed_logits`.
ENGINES: dict[str, Engine] = {
    OURS: _packed(load=load_packed),
    "siman-jax packed (XLA only)": _packed(load=partial(load_packed, native=False)),
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
