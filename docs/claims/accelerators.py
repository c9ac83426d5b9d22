"""Claims about accelerators: what compilers count, since no chip has been measured."""

from collections.abc import Callable, Iterator
from typing import Any

from .claim import Claim, Sentence, Table
from .files import read
from .numbers import number
from .training import NETWORKS

COMPILED = "compile_ahead/compile_ahead.json"
RULES = ("half_half", "bnn", "real")


def claims() -> Iterator[Claim]:
    """Return all claims about accelerators."""
    report = read(COMPILED)
    targets = report["targets"]

    def milliseconds(row: dict[str, Any]) -> str:
        return number(1e3 * _moved(row) / targets[row["target"]]["bytes_per_second"])

    def by_arithmetic(row: dict[str, Any]) -> str:
        peak = targets[row["target"]]["operations_per_second"]
        return number(1e3 * row["operations"] / peak) if row["operations"] else "?"

    columns: list[Callable[[dict[str, Any]], str]] = [
        lambda row: number(_moved(row) / 1e9),
        lambda row: number(row["temporary_bytes"] / 1e6),
        lambda row: number(row["fusions"]),
        lambda row: number(row["launches"]),
        lambda row: number(row["loops"]),
        milliseconds,
        by_arithmetic,
    ]
    found = {
        (row["target"], row["network"], row["weight_rule"], row["images"]): row
        for row in report["rows"]
    }
    cases = dict.fromkeys((target, network, images) for target, network, _, images in found)
    rows = [
        [
            f"{target}, {NETWORKS[network]}, {images}",
            *(
                " / ".join(
                    column(found[target, network, rule, images])
                    if (target, network, rule, images) in found
                    else "-"
                    for rule in RULES
                )
                for column in columns
            ),
        ]
        for target, network, images in sorted(
            cases, key=lambda case: (list(targets).index(case[0]), list(NETWORKS).index(case[1]))
        )
    ]
    yield Table(
        "What compilers count",
        "docs/speed.md",
        [COMPILED],
        "| chip, network, images | GB moved | temporaries, MB | fusions | launches | loops "
        "| ms by bytes | ms by arithmetic |",
        rows,
    )
    yield Sentence(
        "What compilers count",
        "docs/speed.md",
        [COMPILED],
        "for chips that are not there: JAX {},",
        [report["jax"]],
    )


def _moved(row: dict[str, Any]) -> float:
    return float(row["bytes_by_compiler"] or row["bytes_off_chip"])
