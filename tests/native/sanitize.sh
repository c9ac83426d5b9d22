#!/usr/bin/env bash
# The native library under sanitizers: recorded cases, replayed under AddressSanitizer and UBSan
# together, and under ThreadSanitizer where this machine can run it.
#
#   tests/native/sanitize.sh [CASES]     CASES: what record.py wrote; recorded anew if not given
#
# CXX is the compiler, PYTHON the Python that records.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
compiler=${CXX:-g++}

cases=${1:-$scratch/cases}
if [ $# -eq 0 ]; then
    JAX_PLATFORMS=cpu PYTHONPATH=$here/../..:$here/.. "${PYTHON:-python}" "$here/record.py" "$cases"
fi

"$here/build.sh" "$scratch/memory" "$compiler" -O1 -fsanitize=address,undefined \
    -fno-sanitize-recover=all
# Memory that nothing was written to holds NaN.
ASAN_OPTIONS=max_malloc_fill_size=$((2 ** 30)):malloc_fill_byte=255 "$scratch/memory" "$cases"

echo 'int main() {}' >"$scratch/nothing.cc"
if "$compiler" -fsanitize=thread "$scratch/nothing.cc" -o "$scratch/nothing" &&
    "$scratch/nothing"; then
    "$here/build.sh" "$scratch/threads" "$compiler" -O1 -fsanitize=thread
    "$scratch/threads" "$cases"
else
    echo "ThreadSanitizer does not run here, so it was left out."
fi
