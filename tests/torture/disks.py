"""Full disks: trainings and exports on a small file system that runs out of bytes or of inodes.

They have to end at once with status 2 and few words, and to go on once there is room.
"""

import ctypes
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .case import Finding, Unavailable, choose
from .commands import IN_MEMORY, empty, finish, prepare, start, tail, wait
from .results import contents, difference

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MOST_LINES = 40  # of output, beside the lines of epochs
_PAGE = 4096


class Disks:
    seconds = 900
    lifetime = 10_000

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._disk = scratch, scratch / "disk"
        self._disk.mkdir()
        self._output = scratch / "output.txt"
        _own_mounts()
        self._mount("size=1m")  # whether it is allowed
        self._unmount()
        prepare(scratch)
        run = empty(scratch / "undisturbed") / "run"
        finish([*IN_MEMORY, f"--workdir={run}"], self._output)
        self._expected = contents(run, scratch)
        self._words = {
            "training": [*IN_MEMORY, f"--workdir={self._disk}/run"],
            "export": ["export", str(run), f"--out={self._disk}/model", "--overwrite"],
        }
        finish(["export", str(run), f"--out={scratch}/model"], self._output)
        # What is needed, in pages and inodes; the disk's own folder is one inode more.
        files = [path for path in run.rglob("*") if path.is_file()]
        self._pages = {
            "training": sum(-(-path.stat().st_size // _PAGE) for path in files),
            "export": -(-(scratch / "model").stat().st_size // _PAGE),
        }
        self._inodes = {"training": 1 + len(list(run.rglob("*"))), "export": 1}

    def make(self, rng: np.random.Generator) -> bytes:
        what = choose(rng, ["training", "training", "training", "export"])
        short_of = choose(rng, ["size", "size", "nr_inodes"])
        return json.dumps(
            {"what": what, "short of": short_of, "share": float(rng.random())}
        ).encode()

    def check(self, case: bytes) -> Mapping[str, int]:
        plan = json.loads(case)
        what, words = plan["what"], self._words[plan["what"]]
        if plan["short of"] == "size":
            options = f"size={_PAGE * (1 + int(plan['share'] * self._pages[what]))}"
        else:
            options = f"nr_inodes={1 + int(plan['share'] * self._inodes[what])}"
        self._mount(options)
        try:
            status = wait(start(words, self._output))
            text = tail(self._output)
            lines = [line for line in text.splitlines() if not line.startswith("epoch")]
            if status not in (0, 2) or "Traceback" in text or len(lines) > _MOST_LINES:
                raise Finding(f"{options}: ends with {status} and {len(lines)} lines:\n{text}")
            if status == 2 and "error: " not in text:
                raise Finding(f"{options}: ends without a word of why:\n{text}")
            self._remount("size=100m,nr_inodes=10000")
            finish(words, self._output)
            if what == "training":
                different = difference(contents(self._disk / "run", self._scratch), self._expected)
                if different:
                    raise Finding(f"{options}: once there is room, another result. {different}")
            elif (self._disk / "model").read_bytes() != (self._scratch / "model").read_bytes():
                raise Finding(f"{options}: once there is room, another model file")
        finally:
            self._unmount()
        return {f"{what} short of {plan['short of']}, and gone on" if status else "enough": 1}

    def _mount(self, options: str) -> None:
        _mount(["-t", "tmpfs", "-o", options, "torture", str(self._disk)])

    def _remount(self, options: str) -> None:
        _mount(["-o", f"remount,{options}", str(self._disk)])

    def _unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._disk)], check=True)


def _own_mounts() -> None:
    """Let this process, and those it starts, have mounts of their own, which end with them.

    Raises:
      Unavailable: the system does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS | (_CLONE_NEWUSER if user else 0)
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise Unavailable(f"mounts are not allowed: {os.strerror(ctypes.get_errno())}")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount(["--make-rprivate", "/"])


def _mount(arguments: list[str]) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"mounts are not allowed: {done.stderr.strip()}")
