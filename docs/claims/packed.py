"""Claims about the speed, size and memory of packed networks."""

from collections.abc import Iterator, Sequence
from typing import Any

from .claim import Claim, Sentence, Table
from .files import read
from .numbers import number

IMAGENET = "packed_inference_resnet18/packed_inference.json"
CIFAR = {
    "ResNet-18": "packed_inference_cifar_resnet18/packed_inference.json",
    "VGG-small": "packed_inference_cifar_vgg_small/packed_inference.json",
    "ResNet-20": "packed_inference_resnet20/packed_inference.json",
}
AVX2 = [f"packed_inference_avx2/{name}.json" for name in ("resnets", "resnet20", "cifar")]
AVX2_BY_EIGHTS, AVX2_AGAIN = (
    f"packed_inference_avx2/{name}.json" for name in ("batch8", "resnet20_again")
)
LOADING = "packed_loading/loading.json"
NETWORKS = {
    "ImageNet ResNet-18": "imagenet.resnet18_1w1a",
    "CIFAR ResNet-20": "cifar.resnet20_1w1a",
    "CIFAR ResNet-18": "cifar.resnet18_1w1a",
    "VGG-small": "cifar.vgg_small_1w1a",
}
OURS, XLA, TWIN = "siman-jax packed", "siman-jax packed (XLA only)", "siman-jax float twin"
TORCH = ("PyTorch float (TorchScript)", "PyTorch float (compiled)")
# Engines of ImageNet's table by their names in pages; the README shows some.
ENGINES = {
    "siman-jax, packed": OURS,
    "siman-jax, packed, without the native kernel": XLA,
    "siman-jax, float twin": TWIN,
    "PyTorch float, TorchScript": TORCH[0],
    "PyTorch float, compiled": TORCH[1],
    "ONNX Runtime float": "ONNX Runtime float",
    "ONNX Runtime int8": "ONNX Runtime int8",
    "OpenVINO, bfloat16 by its default": "OpenVINO float",
    "OpenVINO int8": "OpenVINO int8",
    "Larq Compute Engine 0.16, 1-bit": "Larq Compute Engine",
}
README_ENGINES = {
    "siman-jax, packed": OURS,
    "OpenVINO int8": "OpenVINO int8",
    "ONNX Runtime int8": "ONNX Runtime int8",
    "PyTorch float, compiled": TORCH[1],
    "Larq Compute Engine, 1-bit": "Larq Compute Engine",
}
BEFORE = "siman-jax packed (before)"
OPENVINO_BITS = ("OpenVINO 1-bit (mean per sample)", "OpenVINO 1-bit (signs about zero)")


def claims() -> Iterator[Claim]:
    """Return all claims about packed networks."""
    yield Table(
        "ResNet-18 for ImageNet, beside other engines",
        "README.md",
        [IMAGENET],
        "| engine | batch 1, 1 thread | batch 1, 2 threads | batch 32, 2 threads |",
        _by_engine(README_ENGINES, [(1, 1), (1, 2), (32, 2)]),
    )
    yield Sentence(
        "Size of ResNet-18's model file",
        "README.md",
        [IMAGENET],
        "The model file has {} MB; in float it would have {} MB.",
        [_megabytes(OURS), _megabytes("ONNX Runtime float")],
    )
    yield Sentence(
        "ResNet-18 for ImageNet, beside other engines",
        "README.md",
        [IMAGENET],
        "times those of siman-jax, on {} cores of an AMD EPYC with AVX-512.",
        [number(read(IMAGENET)["machine"]["cores"])],
    )
    yield from _imagenet()
    yield from _cifar()
    yield from _avx2()
    yield from _loading()


def _imagenet() -> Iterator[Claim]:
    report, page = read(IMAGENET), "docs/speed.md"
    versions = report["versions"][OURS]
    yield Sentence(
        "Packed networks: the machine",
        page,
        [IMAGENET, *CIFAR.values()],
        "it is {} cores of an AMD EPYC with AVX-512 (JAX {}, Python {}).",
        [number(report["machine"]["cores"]), versions["jax"], versions["python"]],
    )
    yield Table(
        "ResNet-18 for ImageNet, beside other engines",
        page,
        [IMAGENET],
        "| engine | batch 1, 1 thread | batch 1, 2 threads | batch 32, 1 thread "
        "| batch 32, 2 threads |",
        _by_engine(ENGINES, [(1, 1), (1, 2), (32, 1), (32, 2)]),
    )
    yield Sentence(
        "ResNet-18 for ImageNet, beside other engines",
        page,
        [IMAGENET],
        "how many times ours; {} rounds",
        [number(len(report["speed"][0]["median_ms_of_rounds"]))],
    )
    yield Sentence(
        "Sizes of ResNet-18's model files",
        page,
        [IMAGENET],
        "Model files: {} MB packed, {} MB in float, and {} MB in int8.",
        [_megabytes(engine) for engine in (OURS, "ONNX Runtime float", "ONNX Runtime int8")],
    )
    yield Sentence(
        "Memory of ResNet-18's calls",
        page,
        [IMAGENET],
        "{} and {} MB packed, {} and {} MB for the float twin.",
        [
            number(row["peak_in_calls"] - row["imported"]).replace(".0", "")
            for engine in (OURS, TWIN)
            for row in report["memory"]
            if row["engine"] == engine
        ],
    )


def _cifar() -> Iterator[Claim]:
    page, rows = "docs/speed.md", []
    for network, path in CIFAR.items():
        speed = read(path)["speed"]
        for batch, threads in sorted({(row["batch"], row["threads"]) for row in speed}):
            case = (batch, threads)
            torch = min((_row(speed, name, *case) for name in TORCH), key=lambda r: r["median_ms"])
            cells = [_row(speed, engine, *case) for engine in (XLA, TWIN)]
            cells += [torch, _row(speed, "OpenVINO int8", *case)]
            ours = number(_row(speed, OURS, *case)["median_ms"])
            if case != (256, 1):
                rows.append([f"{network}, {batch}, {threads}", ours, *map(_cell, cells)])
    yield Table(
        "CIFAR's networks, beside other engines",
        page,
        [*CIFAR.values()],
        "| network, batch, threads | packed | without the native kernel | float twin "
        "| PyTorch float, the faster | OpenVINO int8 |",
        rows,
    )
    yield Sentence(
        "CIFAR's networks, beside other engines",
        page,
        [*CIFAR.values()],
        "CIFAR's networks on 32x32 images, likewise, {} rounds",
        [number(len(read(CIFAR["ResNet-20"])["speed"][0]["median_ms_of_rounds"]))],
    )
    many = _row(read(CIFAR["ResNet-20"])["speed"], OURS, 256, 2)
    yield Sentence(
        "CIFAR's networks, beside other engines",
        page,
        [CIFAR["ResNet-20"]],
        "ResNet-20's {} images in {} ms are {} a second.",
        [
            number(many["batch"]),
            number(many["median_ms"]),
            number(round(1000 * many["batch"] / many["median_ms"])),
        ],
    )
    yield Sentence(
        "How far rounds differ",
        page,
        [IMAGENET, *CIFAR.values()],
        "differ by up to {} % on one thread. On two threads they differ by up to {} %"
        " (ImageNet's ResNet-18), {} % (CIFAR's ResNet-18), {} % (VGG-small) and {} % (ResNet-20).",
        [
            _widest(1, IMAGENET, *CIFAR.values()),
            *(_widest(2, path) for path in (IMAGENET, *CIFAR.values())),
        ],
    )


def _avx2() -> Iterator[Claim]:
    page, rows = "docs/speed.md", []
    for name, network in NETWORKS.items():
        # ResNet-20 was measured twice; batches of 1 and 256 are those of its own file.
        found: dict[tuple[int, int], list[dict]] = {}
        for path in AVX2:
            here: dict[tuple[int, int], list[dict]] = {}
            for row in read(path)["speed"]:
                if row["network"] == network:
                    here.setdefault((row["batch"], row["threads"]), []).append(row)
            found |= here
        for (batch, threads), speed in sorted(found.items()):
            by_engine = {row["engine"]: row for row in speed}
            others = [BEFORE, *OPENVINO_BITS, "OpenVINO int8"]
            rows.append(
                [
                    f"{name}, {batch}, {threads}",
                    number(by_engine[OURS]["median_ms"]),
                    *(_cell(by_engine.get(engine)) for engine in others),
                ]
            )
    yield Table(
        "With AVX2, beside OpenVINO's 1-bit convolution",
        page,
        AVX2,
        "| network, batch, threads | packed | before | OpenVINO 1-bit, mean per sample "
        "| OpenVINO 1-bit, signs about zero | OpenVINO int8 |",
        rows,
    )
    rounds = sorted({len(row["median_ms_of_rounds"]) for f in AVX2 for row in read(f)["speed"]})
    yield Sentence(
        "With AVX2, beside OpenVINO's 1-bit convolution",
        page,
        AVX2,
        "OpenVINO {}, {} or {} rounds",
        [
            read(AVX2[0])["versions"]["OpenVINO int8"]["openvino"].partition("-")[0],
            *map(number, rounds),
        ],
    )
    eights = read(AVX2_BY_EIGHTS)["speed"]
    numbers = []
    for network in ("ImageNet ResNet-18", "CIFAR ResNet-20", "CIFAR ResNet-18", "VGG-small"):
        speed = [row for row in eights if row["network"] == NETWORKS[network]]
        one, two = (_row(speed, OURS, 8, threads)["median_ms"] for threads in (1, 2))
        numbers += [number(one / two), number(one), number(two)]
    yield Sentence(
        "With AVX2, two threads against one",
        page,
        [AVX2_BY_EIGHTS],
        "In batches of 8, two threads are {} times as fast as one with ImageNet's ResNet-18 ({} and"
        " {} ms), {} with ResNet-20 ({} and {}), {} with CIFAR's ResNet-18 ({} and {}), and {} with"
        " VGG-small ({} and {}).",
        numbers,
    )
    again = read(AVX2_AGAIN)["speed"]
    other = _row(again, "OpenVINO int8", 256, 1)
    yield Sentence(
        "With AVX2, ResNet-20's batch of 256 again",
        page,
        [AVX2_AGAIN],
        "ResNet-20's batch of 256 on one thread, again at commit {}: {} ms, OpenVINO int8 {} ms"
        " ({}).",
        [
            read(AVX2_AGAIN)["commit"][:7],
            number(_row(again, OURS, 256, 1)["median_ms"]),
            number(other["median_ms"]),
            number(other["times_ours"]),
        ],
    )


def _loading() -> Iterator[Claim]:
    ours, *onnx = read(LOADING)["rows"]
    seconds, megabytes = "seconds_to_first_prediction", "megabytes_beyond_numpy"
    low, high = sorted(row[megabytes] for row in onnx)
    yield Sentence(
        "From NumPy's import to the first prediction",
        "docs/speed.md",
        [LOADING],
        "it takes {} ms and {} MB, in ONNX Runtime {} ms and {} to {} MB (same machine, {} rounds",
        [
            number(1000 * ours[seconds]),
            number(ours[megabytes]),
            number(1000 * min(row[seconds] for row in onnx)),
            number(low),
            number(high),
            number(len(ours["seconds_of_rounds"])),
        ],
    )


def _row(speed: list[dict], engine: str, batch: int, threads: int) -> dict[str, Any]:
    (row,) = (
        row
        for row in speed
        if (row["engine"], row["batch"], row["threads"]) == (engine, batch, threads)
    )
    return row


def _cell(row: dict[str, Any] | None) -> str:
    return f"{number(row['median_ms'])} ({number(row['times_ours'])})" if row else "-"


def _by_engine(engines: dict[str, str], cases: Sequence[tuple[int, int]]) -> list[list[str]]:
    speed = read(IMAGENET)["speed"]
    rows = {
        name: [_row(speed, engine, *case) for case in cases] for name, engine in engines.items()
    }
    return [
        [name, *(number(r["median_ms"]) if r["engine"] == OURS else _cell(r) for r in found)]
        for name, found in rows.items()
    ]


def _megabytes(engine: str) -> str:
    (row,) = (row for row in read(IMAGENET)["kilobytes"] if row["engine"] == engine)
    return number(row["kilobytes"] / 1000)


def _widest(threads: int, *paths: str) -> str:
    """How far the slowest round is above the fastest, at most, in percent."""
    rounds = [
        row["median_ms_of_rounds"]
        for path in paths
        for row in read(path)["speed"]
        if row["engine"] == OURS and row["threads"] == threads
    ]
    return number(round(100 * max(max(times) / min(times) - 1 for times in rounds)))
