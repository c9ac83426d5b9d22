"""Trains ResNet-20 on CIFAR-10 by the published recipe, as long as there is time.

This is the project's own command, stopped by SIGTERM. The run's folder is stored in one file,
run.tar.gz, from which the next call continues. The file is looked for next to the results, then in
the folder of data, which holds the images as FOLDER/cifar10/{train,test}/CLASS/*.
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts.part import Part, run
from siman_jax.output import write_whole

REPOSITORY = Path(__file__).parent.parent.parent
IMAGES = "cifar10"
STATE = "run.tar.gz"
# Time reserved to stop, save and pack.
SECONDS_TO_SAVE = 20.0
# Exit codes of the command: trained to the end; stopped by SIGTERM with everything saved.
FINISHED, STOPPED = 0, 75


def main(part: Part) -> None:
    """Unpack, train, pack."""
    images = part.data / IMAGES if part.data else None
    if images is None or not (images / "train").is_dir():
        reason = (
            f"there is no folder {images / 'train'}" if images else "no folder of data is given"
        )
        return part.leave_out("run", reason)
    if part.seconds_left < 1.5 * SECONDS_TO_SAVE:
        return part.leave_out("run", "no time was left for it")
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch) / "run"
        before = unpack(part, workdir)
        code, said = train(part, images, workdir)
        rows = read_log(workdir)
        if code not in (FINISHED, STOPPED):
            part.leave_out("run", f"the command ended with {code}: {' | '.join(said)}")
        elif not (workdir / "config.json").exists():
            part.leave_out("run", "its time was over before the first step")
        if (workdir / "config.json").exists():
            part.write(**summarize(rows, before))
            pack(part, workdir)


def unpack(part: Part, workdir: Path) -> int:
    """Unpack the run of an earlier call, if there is one; return its number of epochs."""
    for folder in (part.out.parent, part.data):
        if folder and (folder / STATE).exists():
            with tarfile.open(folder / STATE) as archive:
                archive.extractall(workdir, filter="data")
            return len(read_log(workdir))
    return 0


def train(part: Part, images: Path, workdir: Path) -> tuple[int, list[str]]:
    """Run the command until the time is up; return its exit code and last lines of output."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "siman_jax.main"),
                *("--config=configs/image_folder.py", f"--workdir={workdir}", "--devices=1"),
                # As in configs/cifar10.py, which reads the images from another source.
                *("--config.epochs=400", "--config.optimizer.warmup_epochs=5"),
                "--config.optimizer.staircase=True",
                *(f"--config.data.root={images.absolute()}", "--config.data.cache_dir="),
                "--config.keep_checkpoints=1",
                *(QUICKLY if part.quick else ()),
            ],
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(timeout=max(1, part.seconds_left - SECONDS_TO_SAVE))
        except subprocess.TimeoutExpired:
            process.terminate()
        try:
            process.wait(timeout=max(1, part.seconds_left - SECONDS_TO_SAVE / 4))
        except subprocess.TimeoutExpired:
            process.kill()  # checkpoints are complete at any time
        code = process.wait()
        output.seek(0)
        return code, [line.strip() for line in output.readlines()[-5:]]


# Makes the run small.
QUICKLY = (
    *("--config.epochs=1", "--config.batch_size=4", "--config.model.width=4"),
    "--config.optimizer.warmup_epochs=1",
)


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """Return the log's rows, one per epoch."""
    path = workdir / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summarize(rows: list[dict[str, Any]], before: int) -> dict[str, Any]:
    """Summarize the run's epochs, accuracy, and speed in this call."""
    summary: dict[str, Any] = {"epochs_before": before, "epochs": len(rows)}
    if rows:
        best = max(row["test_top1"] for row in rows)
        summary |= {"test_top1": rows[-1]["test_top1"], "best_test_top1": best}
    if rows[before:]:
        summary["images_per_second"] = max(row["images_per_second"] for row in rows[before:])
    return summary


def pack(part: Part, workdir: Path) -> None:
    """Write the run's folder as one file."""
    archived = io.BytesIO()
    with tarfile.open(fileobj=archived, mode="w:gz") as archive:
        archive.add(workdir, arcname=".")
    write_whole(part.out.with_name(STATE), archived.getvalue())


if __name__ == "__main__":
    run(main)
