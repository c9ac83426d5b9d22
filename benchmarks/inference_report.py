"""Shows the measurements of `packed_inference`: tables and charts."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.engines import ENGINES, OURS

# Blue for this project, grey for the rest; the darker colour is for one thread.
_OUR_COLOURS, _OTHER_COLOURS = ("#1f4e9c", "#6fa0e6"), ("#757575", "#bdbdbd")


def print_speed(rows: list[dict], network: str) -> None:
    """Print a table of times for each number of threads."""
    rows = [row for row in rows if row["network"] == network]
    batches = _in_order(row["batch"] for row in rows)
    for threads in _in_order(row["threads"] for row in rows):
        table = Table(
            title=f"{network}, {threads} thread{'s' * (threads > 1)}", title_justify="left"
        )
        table.add_column("ms per call: median (best), times ours", no_wrap=True)
        for batch in batches:
            table.add_column(f"batch {batch}", justify="right", no_wrap=True)
            table.add_column("", justify="right", no_wrap=True)
        for engine in ENGINES:
            by_batch = {
                row["batch"]: row
                for row in rows
                if (row["engine"], row["threads"]) == (engine, threads)
            }
            if by_batch:
                cells = [cell for batch in batches for cell in _speed_cells(by_batch.get(batch))]
                table.add_row(engine, *cells, style="bold" if engine == OURS else None)
        _print(table)


def _speed_cells(row: dict | None) -> tuple[str, str]:
    if row is None:
        return "-", ""
    ratio = "" if row["times_ours"] is None else f"{row['times_ours']:.2f}"
    return f"{_number(row['median_ms'])} ({_number(row['best_ms'])})", ratio


def print_memory(rows: list[dict], files: list[dict], network: str) -> None:
    """Print a table of model files, and of memory beyond that of imports."""
    rows = [row for row in rows if row["network"] == network]
    measured = {row["engine"] for row in rows}
    batches = _in_order(row["batch"] for row in rows)
    table = Table(title=f"{network}, memory in MB and model file", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("file, kB", justify="right")
    table.add_column("imported", justify="right")
    for batch in batches:
        table.add_column(f"in calls of {batch}", justify="right")
        table.add_column("while loading", justify="right")
    for file in files:
        if file["network"] != network or file["engine"] not in measured:
            continue
        own = {row["batch"]: row for row in rows if row["engine"] == file["engine"]}
        cells = [
            f"+{own[batch][key] - own[batch]['imported']:.0f}" if batch in own else "-"
            for batch in batches
            for key in ("peak_in_calls", "peak_loading")
        ]
        imported = f"{next(iter(own.values()))['imported']:.0f}"
        style = "bold" if file["engine"] == OURS else None
        table.add_row(file["engine"], f"{file['kilobytes']:.0f}", imported, *cells, style=style)
    _print(table)


def print_layers(measured: list[dict]) -> None:
    """Print a table of single binary convolutions."""
    for one in measured:
        threads, ceilings = one["threads"], one["ceilings_gmacs"]
        best_shape = max(ceilings["XLA"], key=ceilings["XLA"].get)
        xla, c = ceilings["XLA"][best_shape], ceilings["C"]
        title = f"Binary 3x3 convolutions, packing included, {threads} thread{'s' * (threads > 1)}"
        table = Table(title=title, title_justify="left")
        for name in ("batch", "map", "channels", "stride", "ms", "GMAC/s", "of XLA's", "of C's"):
            table.add_column(name, justify="right")
        for row in one["layers"]:
            table.add_row(
                str(row["batch"]),
                f"{row['size']}x{row['size']}",
                f"{row['channels']}>{row['features']}",
                str(row["strides"]),
                _number(row["median_ms"]),
                f"{row['gmacs']:.0f}",
                f"{row['gmacs'] / xla:.0%}",
                f"{row['gmacs'] / c:.0%}" if c else "-",
            )
        _print(table)
        in_c = f"a loop in C {c:.0f}" if c else "a loop in C was not measured without a compiler"
        print(
            f"xor and popcount in plain loops over packed words, GMAC/s: XLA {xla:.0f} "
            f"({best_shape} rows x words x columns), {in_c}; an empty call takes "
            f"{1e3 * one['empty_call_ms']:.0f} us"
        )


def draw(report: dict, network: str, path: Path) -> None:
    """Draw the times of a network's engines, one panel for each batch size."""
    from matplotlib.figure import Figure

    rows = [row for row in report["speed"] if row["network"] == network]
    if not rows:
        return
    batches = _in_order(row["batch"] for row in rows)
    threads = _in_order(row["threads"] for row in rows)
    engines = [name for name in ENGINES if any(row["engine"] == name for row in rows)]
    size = (2 + 3.6 * len(batches), 1.2 + 0.22 * len(engines) * (len(threads) + 0.6))
    figure = Figure(figsize=size, layout="constrained")
    height = 0.8 / len(threads)
    for axes, batch in zip(
        figure.subplots(1, len(batches), sharey=True, squeeze=False)[0], batches, strict=True
    ):
        here = [row for row in rows if row["batch"] == batch]
        for row in here:
            shade = threads.index(row["threads"])
            colours = _OUR_COLOURS if row["engine"].startswith(OURS) else _OTHER_COLOURS
            place = engines.index(row["engine"]) + (shade + 0.5) * height - 0.4
            axes.barh(place, row["median_ms"], height * 0.92, color=colours[shade % 2])
            text = f" {_number(row['median_ms'])}"
            if row["times_ours"] is not None and row["engine"] != OURS:
                text += f"  ({row['times_ours']:.1f}x)"
            weight = "bold" if row["engine"] == OURS else "normal"
            axes.text(row["median_ms"], place, text, va="center", fontsize=8, weight=weight)
        axes.set_xlim(0, 1.35 * max(row["median_ms"] for row in here))
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_xlabel("ms per call, median", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_yticks(range(len(engines)), engines, fontsize=9)
    first.invert_yaxis()
    shades = "upper bar 1 thread, lower bar 2" if threads == [1, 2] else f"threads: {threads}"
    figure.suptitle(
        f"{network}, images to logits on {report['machine']['cpu']}\n"
        f"({shades}; in brackets: times ours)",
        fontsize=10,
    )
    figure.savefig(path, dpi=140)


def _number(milliseconds: float) -> str:
    """Format with three significant digits.

    >>> [_number(x) for x in (0.1234, 1.234, 12.34, 1234.5)]
    ['0.123', '1.23', '12.3', '1234']
    """
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{digits}f}"


def _in_order(values: Any) -> list:
    return sorted(set(values))


def _print(table: Table) -> None:
    Console(width=max(110, Console().width)).print(table)
