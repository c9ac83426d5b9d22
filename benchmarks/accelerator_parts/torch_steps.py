"""Measures two of the training steps in PyTorch: channels last, autocast, compiled.

The program is `benchmarks.torch_training`, with one batch of normalized images on the device.
"""

import statistics
import time
from typing import Any

import torch

from benchmarks.accelerator_parts.part import Part, run
from benchmarks.case import Case
from benchmarks.torch_training import Training, build_network

ROUNDS = 5
# By the names that `benchmarks.accelerator_parts.steps` uses, with their batch sizes.
CASES = {
    "cifar.resnet20, batch 256, bfloat16": (Case("cifar.resnet20_1w1a", 32, 10, 16), 256),
    "imagenet.resnet18, batch 256, bfloat16": (Case("imagenet.resnet18_1w1a", 224, 1000, 64), 256),
}


def main(part: Part) -> None:
    """Time both steps."""
    if not torch.cuda.is_available() and not part.quick:
        return part.leave_out("PyTorch", "it finds no accelerator")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    part.write(device=name, versions={"torch": torch.__version__})
    for program, (case, batch) in CASES.items():
        if part.seconds_left < 10:
            part.leave_out(program, "no time was left to compile it")
            continue
        if part.quick:
            case, batch = case._replace(image_size=32, num_classes=10, width=4), 2
        try:
            part.add("programs", program, measure(case, batch, device, part.quick))
        except Exception as error:  # the other one may still work
            part.leave_out(program, f"{type(error).__name__}: {error}")


def measure(case: Case, batch: int, device: torch.device, quick: bool) -> dict[str, Any]:
    """Time steps of one network; with `quick` they are not compiled, which takes minutes."""
    torch.manual_seed(0)
    started = time.monotonic()
    network = build_network(case.network, case.num_classes, case.width, case.image_size)
    training = Training(
        network.to(device),
        torch.randn(batch, 3, case.image_size, case.image_size, device=device),
        torch.randint(case.num_classes, (batch,), device=device),
        weight_decay=1e-4 if case.network.startswith("imagenet") else 5e-4,
        autocast=torch.bfloat16,
        compiled=not quick,
    )

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = training.step()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    seconds(1)
    to_first_step = time.monotonic() - started
    steps = 1 if quick else max(2, round(0.5 / (seconds(3) / 3)))
    rates = [steps * batch / seconds(steps) for _ in range(2 if quick else ROUNDS)]
    return {
        "images_per_second": statistics.median(rates),
        "rounds": rates,
        "steps_of_a_round": steps,
        "seconds_to_first_step": to_first_step,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


if __name__ == "__main__":
    run(main)
