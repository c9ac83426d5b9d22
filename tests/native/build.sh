#!/usr/bin/env bash
# Builds replay.cc with the native library's own sources.
#
#   tests/native/build.sh PROGRAM COMPILER [FLAG...]
set -euo pipefail
program=$1
# GCC finds something uninitialized in its own header of AVX-512.
compiler=("${@:2}" -std=c++17 -g -Wall -Wno-psabi -Wno-maybe-uninitialized -pthread)
here=$(cd "$(dirname "$0")" && pwd)
library=$here/../../siman_jax/native
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT

jobs=()
compile() { # OBJECT SOURCE [FLAG...]
    "${compiler[@]}" "${@:3}" -I"$library" -c "$2" -o "$objects/$1.o" &
    jobs+=($!)
}

compile replay "$here/replay.cc"
for file in amx avx2 avx512 neon process; do
    compile "$file" "$library/$file.cc"
done
for bytes in 16 64; do
    name=portable$bytes
    compile "$name" "$here/portable.cc" -DSIMAN_BYTES="$bytes" -DSIMAN_NAMESPACE="$name" \
        -DSIMAN_NAME="\"$name\""
done
for job in "${jobs[@]}"; do wait "$job"; done
"${compiler[@]}" "$objects"/*.o -o "$program"
