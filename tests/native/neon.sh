#!/usr/bin/env bash
# The NEON code on a machine without it: recorded cases, replayed by qemu-user, under UBSan.
#
#   tests/native/neon.sh [CASES]     CASES: what record.py wrote; recorded anew if not given
#
# PYTHON is the Python that records. Exit status 2: something is not installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
if [ ${#missing[@]} -gt 0 ]; then
    echo "This needs Debian packages that are not installed: apt-get install ${missing[*]}" >&2
    exit 2
fi

cases=${1:-$scratch/cases}
if [ $# -eq 0 ]; then
    JAX_PLATFORMS=cpu PYTHONPATH=$here/../..:$here/.. "${PYTHON:-python}" "$here/record.py" "$cases"
fi

"$here/build.sh" "$scratch/replay" aarch64-linux-gnu-g++ -O2 -static -fsanitize=undefined \
    -fno-sanitize-recover=all
qemu-aarch64 "$scratch/replay" "$cases"
