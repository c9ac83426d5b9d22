#!/usr/bin/env bash
# Train in one process on all devices of this machine: TPU, GPUs or CPU.
#
#   launch/local.sh [--dry-run] CONFIG WORKDIR [FLAGS...]
#   launch/local.sh configs/cifar10.py:resnet20 runs/resnet20 --config.epochs=10
#
# Run it in the repository's root. --dry-run only prints the command.
set -euo pipefail

dry_run=false
[[ ${1:-} != --dry-run ]] || { dry_run=true; shift; }
needed=(CONFIG WORKDIR)
if (($# < ${#needed[@]})); then
    echo "error: ${needed[*]:$#} missing" >&2
    echo "usage: launch/local.sh [--dry-run] ${needed[*]} [FLAGS...]" >&2
    exit 2
fi

command=(python -m siman_jax.main "--config=$1" "--workdir=$2" "${@:3}")
if $dry_run; then
    printf '%q' "${command[0]}"
    printf ' %q' "${command[@]:1}"
    echo
    exit
fi
exec "${command[@]}"
