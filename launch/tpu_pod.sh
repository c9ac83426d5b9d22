#!/usr/bin/env bash
# Train on a slice of Cloud TPU VMs, with one process on each of its hosts.
#
#   launch/tpu_pod.sh [--dry-run] NAME ZONE CONFIG WORKDIR [FLAGS...]
#   launch/tpu_pod.sh my-slice us-central2-b configs/cifar10.py:resnet20 /mnt/runs/resnet20
#
# Every host needs this repository in ~/siman-jax with Python 3.11 or later in .venv; once:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL siman-jax
#     && cd siman-jax && python3.11 -m venv .venv && .venv/bin/pip install -e ".[tpu]"'
# WORKDIR must be a folder that all hosts share, such as Filestore or a bucket mounted by gcsfuse;
# gs:// paths do not work. --dry-run only prints the command.
#
# gcloud connects to all hosts at once and returns the exit status of one that failed. If this
# script is stopped, training continues on the hosts, so run it under tmux. To save and stop there:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --command='pkill -f [s]iman_jax.main'
# TPU7x and later do not work this way; use Kubernetes (launch/jobset.sh).
set -euo pipefail

dry_run=false
[[ ${1:-} != --dry-run ]] || { dry_run=true; shift; }
needed=(NAME ZONE CONFIG WORKDIR)
if (($# < ${#needed[@]})); then
    echo "error: ${needed[*]:$#} missing" >&2
    echo "usage: launch/tpu_pod.sh [--dry-run] ${needed[*]} [FLAGS...]" >&2
    exit 2
fi
if [[ $4 == gs://* ]]; then
    echo "error: WORKDIR is $4; mount the bucket on every host and name the folder" >&2
    exit 2
fi

# Quoted once, for the shell of the hosts.
remote=$(printf ' %q' "--config=$3" "--workdir=$4" --distributed "${@:5}")
command=(
    gcloud compute tpus tpu-vm ssh "$1" "--zone=$2" --worker=all
    "--command=cd siman-jax && .venv/bin/python -m siman_jax.main$remote"
)
if $dry_run; then
    printf '%q' "${command[0]}"
    printf ' %q' "${command[@]:1}"
    echo
    exit
fi
exec "${command[@]}"
