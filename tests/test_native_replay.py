"""Replays recorded cases of the native library: under sanitizers, and NEON in an emulator."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli import REPOSITORY

SCRIPTS = Path(__file__).parent / "native"


def has_sanitizers(directory):
    """Tell whether the compiler supports what `sanitize.sh` needs."""
    if not shutil.which("g++"):
        return False
    flags = ["-fsanitize=address,undefined", "-x", "c++", "-", "-o", directory / "nothing"]
    return subprocess.run(["g++", *flags], input=b"int main() {}", check=False).returncode == 0


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    path = tmp_path_factory.mktemp("cases") / "cases"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests",
    }
    subprocess.run([sys.executable, SCRIPTS / "record.py", path], env=environment, check=True)
    return path


def replay(script, cases):
    done = subprocess.run([SCRIPTS / script, cases], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 of " in done.stdout


@pytest.mark.slow
def test_under_sanitizers(tmp_path, request):
    if not has_sanitizers(tmp_path):
        pytest.skip("no compiler with sanitizers")
    replay("sanitize.sh", request.getfixturevalue("cases"))


@pytest.mark.slow
def test_neon_in_an_emulator(request):
    if not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")):
        pytest.skip("no cross compiler or no emulator")
    replay("neon.sh", request.getfixturevalue("cases"))


def test_what_the_emulation_lacks_is_said(tmp_path):
    for tool in ("bash", "dirname", "mktemp", "rm"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [SCRIPTS / "neon.sh"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "apt-get install g++-aarch64-linux-gnu qemu-user" in done.stderr


def test_shellcheck_finds_nothing():
    own = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(own) if own.exists() else shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, *SCRIPTS.glob("*.sh")], capture_output=True, text=True, check=False
    )
    assert not done.stdout
