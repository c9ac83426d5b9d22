"""Claims about the speed of training on a CPU."""

from collections.abc import Iterator
from typing import Any

from .claim import Claim, Sentence, Table
from .files import read
from .numbers import number

PAGE = "docs/speed.md"
AVX512, AMX, AMX_AGAIN, AVX2, AVX2_BEFORE = (
    f"training_cpu/{name}.json" for name in ("avx512", "amx", "amx_again", "avx2_joined", "avx2")
)
EVALUATION = "training_cpu/evaluation.json"
PROGRAMS = "training_cpu/evaluation_program.json"
DIGITS = "training_cpu/digits_command.json"
SEEDS = "seeds_at_once/seeds_at_once.json"
OURS, XLA = "siman-jax", "siman-jax (XLA only)"
TORCH, COMPILED = "PyTorch", "PyTorch (compiled)"
NETWORKS = {
    "cifar.resnet20_1w1a": "CIFAR ResNet-20",
    "cifar.resnet18_1w1a": "CIFAR ResNet-18",
    "cifar.vgg_small_1w1a": "CIFAR VGG-small",
    "imagenet.resnet18_1w1a": "ImageNet ResNet-18",
    "imagenet.resnet34_1w1a": "ImageNet ResNet-34",
}
FIRST = "| network, batch | siman-jax, images/s | PyTorch | compiled | ratio to the faster "
TEMPORARIES, MEMORY = "| temporaries, MB ", "| memory in steps, MB |"
ON_ONE = "| on 1 thread "


def claims() -> Iterator[Claim]:
    """Return all claims about training."""
    ratios = [
        _ratio(sides)
        for path in (AVX512, AMX, AMX_AGAIN, AVX2)
        for sides in _cases(path).values()
        if TORCH in sides
    ]
    yield Sentence(
        "Training beside PyTorch",
        "README.md",
        [AVX512, AMX, AMX_AGAIN, AVX2],
        "Training on such CPUs is {} to {} times as fast as PyTorch.",
        [number(min(ratios)), number(max(ratios))],
    )
    yield from _with_avx512()
    yield from _with_amx()
    yield from _with_avx2()
    yield from _evaluation()
    digits = read(DIGITS)
    yield Sentence(
        "The digits' command",
        PAGE,
        [DIGITS],
        "The command of the digits takes {} of the time it took at commit {}, before training was"
        " native",
        [number(digits["share_of_the_time_before"]), digits["commit_before"][:7]],
    )
    yield from _seeds()


def _with_avx512() -> Iterator[Claim]:
    two, by_xla, one = read(AVX512)["runs"]
    versions = two["versions"][TORCH]
    _, model, _ = two["machine"]["family_model_stepping"]
    yield Sentence(
        "Training with AVX-512",
        PAGE,
        [AVX512],
        "Medians of {} rounds on 2 threads ({} rounds on 1). Intel Xeon (family {}, model {} as"
        " its virtual machine says) with AVX-512, Python {}, JAX {}, PyTorch {}, commit {}",
        [
            number(two["rounds"]),
            number(one["rounds"]),
            two["machine"]["family_model_stepping"][0],
            model,
            versions["python"],
            two["versions"][OURS]["jax"],
            versions["torch"].partition("+")[0],
            two["commit"][:7],
        ],
    )
    yield Table(
        "Training with AVX-512", PAGE, [AVX512], FIRST + ON_ONE + MEMORY, _rows(AVX512, one=True)
    )
    native, xla = by_xla["speed"]
    yield Sentence(
        "Training by XLA alone",
        PAGE,
        [AVX512],
        "ResNet-20 takes {} times as long, and {} MB of temporaries instead of {}.",
        [
            number(xla["ours_is_faster_by"]),
            number(xla["xla_temporaries_mb"]),
            number(native["xla_temporaries_mb"]),
        ],
    )


def _with_amx() -> Iterator[Claim]:
    (run,) = read(AMX)["runs"]
    yield Sentence(
        "Training with AMX",
        PAGE,
        [AMX],
        "code of the kernels in C++, at commit {}",
        [run["commit"][:7]],
    )
    yield Sentence(
        "Training with AMX",
        PAGE,
        [AMX],
        "{} rounds, 2 threads):",
        [number(run["rounds"])],
    )
    yield Table(
        "Training with AMX",
        PAGE,
        [AMX],
        FIRST + TEMPORARIES + MEMORY,
        _rows(AMX, temporaries=True),
    )
    yield from _again(
        "Training with AMX again",
        AMX_AGAIN,
        "on the same machine in an hour when both sides ran slower",
    )


def _with_avx2() -> Iterator[Claim]:
    two, one = read(AVX2)["runs"]
    family, model, _ = two["machine"]["family_model_stepping"]
    yield Sentence(
        "Training with AVX2",
        PAGE,
        [AVX2],
        "On an AMD EPYC (family {}, model {}) whose virtual machine has AVX2 and not AVX-512, at"
        " commit {}",
        [family, model, two["commit"][:7]],
    )
    yield Sentence(
        "Training with AVX2",
        PAGE,
        [AVX2],
        "{} rounds on 2 threads, {} on 1",
        [number(two["rounds"]), number(one["rounds"])],
    )
    yield Table(
        "Training with AVX2",
        PAGE,
        [AVX2],
        FIRST + ON_ONE + TEMPORARIES + MEMORY,
        _rows(AVX2, one=True, temporaries=True),
    )
    before, *_ = read(AVX2_BEFORE)["runs"]
    sides = _cases(AVX2_BEFORE)["imagenet.resnet34_1w1a", 2]
    yield Sentence(
        "ResNet-34 with AVX2",
        PAGE,
        [AVX2_BEFORE],
        "ResNet-34 was measured at commit {}: {} images/s against {} and {},"
        " ratio to the faster {}",
        [
            before["commit"][:7],
            *(number(sides[side]["images_per_second"]) for side in (OURS, TORCH, COMPILED)),
            number(_ratio(sides)),
        ],
    )


def _again(title: str, path: str, when: str) -> Iterator[Claim]:
    """Two networks of CIFAR, measured once more at another commit."""
    report, cases = read(path), _cases(path)
    shown = [report["commit"][:7], number(report["rounds"])]
    for network in ("cifar.resnet20_1w1a", "cifar.resnet18_1w1a"):
        sides = cases[network, 2]
        shown += [number(sides[side]["images_per_second"]) for side in (OURS, TORCH, COMPILED)]
        shown.append(number(_ratio(sides)))
    yield Sentence(
        title,
        PAGE,
        [path],
        f"At commit {{}}, {when} ([numbers](../results/{path}), {{}} rounds, 2 threads),"
        " ResNet-20 trained {} images/s against {} and {}, ratio to the faster {}. CIFAR's"
        " ResNet-18 trained {} against {} and {}, ratio {}.",
        shown,
    )


def _evaluation() -> Iterator[Claim]:
    report = read(EVALUATION)
    (row,) = report["rows"]
    yield Sentence(
        "Evaluation, natively and by XLA alone",
        PAGE,
        [EVALUATION],
        "Evaluating ResNet-20 on {} images takes {} s natively and {} s by XLA alone, {} times as"
        " long",
        [
            number(row["images"]),
            number(row["native"]["later_s"]),
            number(row["XLA"]["later_s"]),
            number(row["ratio"]),
        ],
    )
    yield Sentence(
        "Evaluation, natively and by XLA alone",
        PAGE,
        [EVALUATION],
        "median of {}, 2 threads, an AMD EPYC with AVX2, JAX 0.10.2, commit {}",
        [number(row["rounds"]), report["commit"]],
    )
    rows = {
        when: [run["rows"][0] for run in read(PROGRAMS)[when]["runs"]]
        for when in ("after", "before")
    }
    yield Sentence(
        "Evaluation, as a program and before",
        PAGE,
        [PROGRAMS],
        "On {} images ResNet-20's took {} and {} s natively, {} and {} s before there were"
        " programs; by XLA alone {} and {} s, {} and {} s before",
        [
            number(rows["after"][0]["images"]),
            *(
                number(row[how]["later_s"])
                for how in ("native", "XLA")
                for when in ("after", "before")
                for row in rows[when]
            ),
        ],
    )
    yield Sentence(
        "Evaluation, as a program and before",
        PAGE,
        [PROGRAMS],
        "took {} and {} s natively instead of {} and {} s.",
        [number(row["native"]["first_s"]) for when in ("after", "before") for row in rows[when]],
    )


def _seeds() -> Iterator[Claim]:
    report = read(SEEDS)
    speed = report["images_per_second"]
    yield Sentence(
        "Several seeds as one program",
        PAGE,
        [SEEDS],
        "on a CPU, {} rounds, commit {}",
        [number(report["rounds"]), report["commit"]],
    )
    yield Table(
        "Several seeds as one program",
        PAGE,
        [SEEDS],
        "| data | one by one | at once | ratio |",
        [
            [name, *(number(speed[key][side]) for side in ("one by one", "at once", "ratio"))]
            for name, key in (
                ("digits, 8x8, batch 16", "3 seeds, 8x8, batch 16"),
                ("32x32, batch 64", "3 seeds, 32x32, batch 64"),
            )
        ],
    )


def _cases(path: str) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Rows of all sides by network and threads; later runs in the file do not replace earlier."""
    cases: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    report = read(path)
    for run in report.get("runs", [report]):
        found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
        for row in run["speed"]:
            found.setdefault((row["network"], row["threads"]), {})[row["side"]] = row
        cases = found | cases
    return cases


def _faster(sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The side of PyTorch against which siman-jax gains least, in the median of the rounds."""
    torch = [row for side, row in sides.items() if side in (TORCH, COMPILED)]
    return min(torch, key=lambda row: row["ours_is_faster_by"])


def _ratio(sides: dict[str, dict[str, Any]]) -> float:
    return float(_faster(sides)["ours_is_faster_by"])


def _rows(path: str, one: bool = False, temporaries: bool = False) -> list[list[str]]:
    cases, rows = _cases(path), []
    for (network, threads), sides in cases.items():
        if threads != 2:
            continue
        row = [f"{NETWORKS[network]}, {sides[OURS]['batch']}"]
        row += [number(sides[side]["images_per_second"]) for side in (OURS, TORCH, COMPILED)]
        row.append(number(_ratio(sides)))
        if one:
            on_one = cases.get((network, 1))
            row.append(number(_ratio(on_one)) if on_one else "-")
        if temporaries:
            row.append(number(sides[OURS]["xla_temporaries_mb"]))
        memory = [
            number(side["peak_in_steps_mb"] - side["imported_mb"])
            for side in (sides[OURS], _faster(sides))
        ]
        rows.append([*row, " against ".join(memory)])
    order = list(NETWORKS.values())
    return sorted(rows, key=lambda row: order.index(row[0].rpartition(",")[0]))
