"""Claims about accuracy: single runs, and the studies."""

from collections.abc import Iterator
from statistics import mean
from typing import Any

from .claim import Claim, Sentence, Table
from .files import read, read_log
from .numbers import number, spread

PAGE = "docs/studies.md"
DIGITS, CIFAR = (
    f"{run}/log.jsonl" for run in ("digits_resnet20_12epochs", "cifar10_jpeg_resnet20_10epochs")
)
METHODS, DECAY, CLIP, PARTS = (
    f"{study}/summary.json" for study in ("methods", "decay", "clip", "parts")
)
# As the paper reports it, arXiv 2102.07981.
PUBLISHED = "87.4 (400 epochs)"
# From the best to the worst, in two columns.
NAMES = {
    "real": "real-valued twin",
    "half_half": "half-half (SiMaN)",
    "dorefa": "DoReFa",
    "recu": "ReCU",
    "angle_optimal": "angle-optimal (SiMaN)",
    "bop": "Bop",
    "xnor_net": "XNOR-Net",
    "bnn": "BNN",
    "bi_real": "Bi-Real",
    "rbnn": "RBNN",
    "ir_net": "IR-Net",
    "ir_net_0.1": "IR-Net, sharper",
}


def claims() -> Iterator[Claim]:
    """Return all claims about accuracy."""
    yield Table(
        "Trained networks",
        "README.md",
        [DIGITS, CIFAR],
        "| data | network | epochs | last | best | published | measured on |",
        [
            ["digits", "ResNet-20 1w1a", *_run(DIGITS), "-", "2 CPU cores, 1 seed"],
            ["CIFAR-10 (JPEG)", "ResNet-20 1w1a", *_run(CIFAR), PUBLISHED, "2 CPU cores, 1 seed"],
        ],
    )
    yield _methods()
    yield from _decay()
    yield from _clip()
    yield from _parts()


def _run(log: str) -> list[str]:
    """Epochs, and the top-1 of the last and of the best."""
    rows = read_log(log)
    best = max(row["test_top1"] for row in rows)
    return [number(rows[-1]["epoch"]), number(rows[-1]["test_top1"]), number(best)]


def _top1(summary: str, variant: str) -> str:
    return spread(_last(summary, variant))


def _last(summary: str, variant: str) -> dict[str, float]:
    last: dict[str, float] = read(summary)["variants"][variant]["last"]
    return last


def _measured(summary: str, variant: str, field: str, epoch: int) -> float:
    """The mean over binary layers and seeds of what the log has in an epoch."""
    folder, seeds = summary.partition("/")[0], (0, 1, 2)
    logs = [read_log(f"{folder}/{variant}/seed{seed}/log.jsonl") for seed in seeds]
    return mean(mean(log[epoch - 1][field].values()) for log in logs)


def _methods() -> Claim:
    cells = []
    for variant, name in NAMES.items():
        top1, flips = _top1(METHODS, variant) if variant != "ir_net" else "", "-"
        if variant == "ir_net":
            failed = len(read(METHODS)["variants"][variant]["failures"])
            top1 = f"{failed} of 3 seeds diverged"
        elif variant != "real":
            flips = number(100 * _measured(METHODS, variant, "flips", epoch=1))
        if variant == "rbnn":
            best: dict[str, Any] = read(METHODS)["variants"][variant]["best"]
            top1 += f" (best epoch {number(best['mean'])})"
        cells.append([name, top1, flips])
    half = len(cells) // 2
    return Table(
        "Method against method",
        PAGE,
        [METHODS],
        "| method | top-1 | flips (%) | method | top-1 | flips (%) |",
        [left + right for left, right in zip(cells[:half], cells[half:], strict=True)],
    )


def _decay() -> Iterator[Claim]:
    rows = []
    for name, strength in (
        ("none, as in SiMaN", "no_l2"),
        ("5e-4", "l2"),
        ("5e-2, in sum that of a published run", "l2_100"),
    ):
        row = [name]
        for rule in ("half_half", "angle_optimal"):
            variant = f"{rule}_{strength}"
            row.append(_top1(DECAY, variant))
            row += [
                number(_measured(DECAY, variant, field, epoch=5))
                for field in ("fitted_shape", "best_share")
            ]
        rows.append(row)
    yield Table(
        "Decay of binary kernels",
        PAGE,
        [DECAY],
        "| decay | half-half: top-1 | shape | best share | angle-optimal: top-1 | shape "
        "| best share |",
        rows,
    )


def _clip() -> Iterator[Claim]:
    rows = [["0", _top1(CLIP, "none"), ""]]
    for percent in (5, 15, 25):
        row = [str(percent), *(_top1(CLIP, f"{how}_{percent}") for how in ("constant", "decaying"))]
        rows.append(row)
    rows[2][2] += ", as published"
    yield Table("How much to clip", PAGE, [CLIP], "| P | constant | falling to 0 |", rows)
    yield Sentence(
        "How much to clip",
        PAGE,
        [CLIP],
        "(cosine {} of a possible {})",
        [
            f"{_measured(CLIP, 'decaying_25', field, epoch=5):.3f}"
            for field in ("half_half_cosine", "best_cosine")
        ],
    )


def _parts() -> Iterator[Claim]:
    activations = ("siman", "approx_sign", "ste_sign")
    yield Table(
        "Kernels or activations",
        PAGE,
        [PARTS],
        "| kernels | SiMaN's activations | `approx_sign` | `ste_sign` |",
        [
            [name, *(_top1(PARTS, f"{kernels}_{activation}") for activation in activations)]
            for name, kernels in (("half-half", "half_half"), ("plain sign", "bnn"))
        ],
    )
    top1 = {
        (kernels, activation): _last(PARTS, f"{kernels}_{activation}")["mean"]
        for kernels in ("half_half", "bnn")
        for activation in activations
    }
    by_kernels = [top1["half_half", a] - top1["bnn", a] for a in activations]
    by_activations = [top1[k, "siman"] - top1[k, "ste_sign"] for k in ("half_half", "bnn")]
    yield Sentence(
        "Kernels or activations",
        PAGE,
        [PARTS],
        "Half-half kernels gain {} to {} points with any of the activations. SiMaN's activations"
        " gain {} to {} over BNN's with either kernel.",
        [
            f"{gain:.1f}"
            for gains in (by_kernels, by_activations)
            for gain in (min(gains), max(gains))
        ],
    )
