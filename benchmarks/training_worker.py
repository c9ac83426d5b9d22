"""A process that trains for `training`, controlled by lines of JSON on its pipes.

    python -m benchmarks.training_worker SIDE NETWORK IMAGE_SIZE CLASSES WIDTH BATCH THREADS

The process binds itself to THREADS cores before it imports anything that counts them. It answers
requests: `build` a step and take it once, `time` steps, `memory`.
"""

import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks.case import Case
from benchmarks.engine_worker import forget_peak, keep_to_cores, memory, versions
from benchmarks.input_pipeline import keep_freed_memory
from benchmarks.worker_process import answer_requests, answering


class RunnableStep(NamedTuple):
    """A training step that is ready to run.

    Attributes:
      run: takes some steps, waits for them, and returns their seconds.
      details: other facts about it, by name.
    """

    run: Callable[[int], float]
    details: dict[str, Any]


class Side(NamedTuple):
    """A way to train.

    Attributes:
      build: function from a case, a batch size and a number of threads to the step.
      modules: its imports; memory is measured after them.
      install: how to install it.
    """

    build: Callable[[Case, int, int], RunnableStep]
    modules: tuple[str, ...]
    install: str


def build_jax(case: Case, batch: int, threads: int, *, native: bool) -> RunnableStep:
    """Compile the step of a run of this project, for one batch of uint8 images."""
    del threads  # JAX uses all cores of the process
    from benchmarks.training_program import OneBatch, Trainer, compile_training
    from siman_jax.devices.mesh import make_mesh
    from siman_jax.native import library

    library.keep_freed_memory()  # as in the project's commands
    config, mesh = jax_config(case), make_mesh(1)
    config.batch_size, config.native = batch, native
    feed = OneBatch(config, mesh)
    compiled, progress = compile_training(config, feed, mesh)
    calls = (compiled.as_text() or "").count('custom_call_target="siman_')
    if native and not calls:
        raise ModuleNotFoundError("siman-jax was built without its native library")
    trainer = Trainer(compiled, progress, feed, batch)
    analysis = compiled.memory_analysis()
    temporaries = analysis.temp_size_in_bytes / 2**20 if analysis else None
    return RunnableStep(trainer.run, {"xla_temporaries_mb": temporaries, "native_calls": calls})


def jax_config(case: Case) -> Any:
    """Return the published recipe of a network, with the sizes of a case."""
    from siman_jax.configs import cifar10, imagenet

    data, _, network = case.network.partition(".")
    recipe = {"cifar": cifar10, "imagenet": imagenet}[data]
    config = recipe.get_config(network.removesuffix("_1w1a"))
    config.epochs = 10**6
    config.model.width = case.width
    config.data.image_size, config.data.num_classes = case.image_size, case.num_classes
    return config


def build_torch(case: Case, batch: int, threads: int, *, compiled: bool) -> RunnableStep:
    """Build the step in PyTorch, for one batch of normalized images."""
    import torch

    from benchmarks.torch_training import Training, build_network

    # PyTorch does not keep freed memory; its tuning guide recommends an allocator that does.
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, case.image_size, case.image_size)
    labels = torch.randint(case.num_classes, (batch,))
    network = build_network(case.network, case.num_classes, case.width, case.image_size)
    decay = 1e-4 if case.network.startswith("imagenet") else 5e-4
    training = Training(network, images, labels, weight_decay=decay, compiled=compiled)

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            training.step()
        return time.perf_counter() - start

    return RunnableStep(run, {})


OURS = "siman-jax"
_jax = partial(Side, modules=("benchmarks.training_program",), install="pip install -e .")
_torch = partial(
    Side, modules=("torch", "benchmarks.torch_training"), install="pip install 'torch>=2.6'"
)
# By name, in the order of tables and charts.
SIDES: dict[str, Side] = {
    OURS: _jax(partial(build_jax, native=True)),
    "siman-jax (XLA only)": _jax(partial(build_jax, native=False)),
    "PyTorch": _torch(partial(build_torch, compiled=False)),
    "PyTorch (compiled)": _torch(
        partial(build_torch, compiled=True),
        modules=("torch._inductor.compile_fx", "benchmarks.torch_training"),
        install="pip install 'torch>=2.6', and a C++ compiler",
    ),
}


class TrainingWorker:
    """A side and its step."""

    def __init__(self, name: str, case: Case, batch: int, threads: int) -> None:
        self._side = SIDES[name]
        for module in self._side.modules:
            importlib.import_module(module)
        forget_peak()
        self._imported, self._peak_building = memory("VmRSS"), 0.0
        self._case, self._batch, self._threads = case, batch, threads
        self._run: Callable[[int], float] = lambda steps: 0.0

    def build(self) -> dict:
        """Build the step, and take it once."""
        start = time.perf_counter()
        self._run, details = self._side.build(self._case, self._batch, self._threads)
        self._run(1)
        seconds = time.perf_counter() - start
        self._peak_building = memory("VmHWM")
        forget_peak()
        return {"seconds_to_first_step": seconds, "versions": versions(), **details}

    def time(self, steps: int) -> dict:
        """Take some steps."""
        start_of_work = time.process_time()
        seconds = self._run(steps)
        cores = (time.process_time() - start_of_work) / seconds
        return {"images_per_second": steps * self._batch / seconds, "cores_used": cores}

    def memory(self) -> dict:
        """Return memory in MB: after imports, peak up to the first step, and peak in later ones."""
        return {
            "imported_mb": self._imported,
            "peak_building_mb": self._peak_building,
            "peak_in_steps_mb": memory("VmHWM"),
        }


def main() -> None:
    """Answer requests until the pipe closes."""
    name, network, *numbers = sys.argv[1:]
    *sizes, batch, threads = map(int, numbers)
    with answering() as answer:
        keep_to_cores(threads)
        answer_requests(TrainingWorker(name, Case(network, *sizes), batch, threads), answer)


if __name__ == "__main__":
    main()
