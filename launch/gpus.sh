#!/usr/bin/env bash
# Train on N GPUs of this machine, with one process for each GPU.
#
#   launch/gpus.sh [--dry-run] N CONFIG WORKDIR [FLAGS...]
#   launch/gpus.sh 4 configs/cifar10.py:resnet20 runs/resnet20 --config.batch_size=512
#
# Run it in the repository's root. launch/local.sh uses all GPUs from one process; several processes
# are faster if one cannot decode images fast enough. --dry-run only prints the commands.
# - CUDA_VISIBLE_DEVICES selects the GPUs. SIMAN_PORT sets the port; the default is a free one.
# - Process 0 writes to the terminal, the others to files whose folder is printed at the start.
# - SIGTERM, SIGHUP and Ctrl-C make all processes save and stop; a second Ctrl-C kills them.
# - The exit status is that of the first process that fails. The others notice within
#   --host_timeout seconds; those that still run half a minute later are killed.
set -euo pipefail

dry_run=false
[[ ${1:-} != --dry-run ]] || { dry_run=true; shift; }
needed=(N CONFIG WORKDIR)
if (($# < ${#needed[@]})); then
    echo "error: ${needed[*]:$#} missing" >&2
    echo "usage: launch/gpus.sh [--dry-run] ${needed[*]} [FLAGS...]" >&2
    exit 2
fi
n=$1
if [[ ! $n =~ ^[1-9][0-9]*$ ]]; then
    echo "error: N is $n; it must be a number of GPUs" >&2
    exit 2
fi
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((n - 1)))}"
if ((${#gpus[@]} < n)); then
    echo "error: N is $n, but CUDA_VISIBLE_DEVICES names ${#gpus[@]}: $CUDA_VISIBLE_DEVICES" >&2
    exit 2
fi
host_timeout=60
for flag in "${@:4}"; do
    [[ $flag != --host_timeout=* ]] || host_timeout=${flag#*=}
done
port=${SIMAN_PORT:-$(python -c '
import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])')}

make_command() { # of process $1; without a bind address JAX listens on every interface
    command=(
        env "CUDA_VISIBLE_DEVICES=${gpus[$1]}" "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port"
        python -m siman_jax.main "--config=$config" "--workdir=$workdir"
        "--coordinator=127.0.0.1:$port" "--num_processes=$n" "--process_id=$1" "${flags[@]}"
    )
}
config=$2 workdir=$3 flags=("${@:4}")
if $dry_run; then
    for ((i = 0; i < n; i++)); do
        make_command "$i"
        printf '%q' "${command[0]}"
        printf ' %q' "${command[@]:1}"
        echo
    done
    exit
fi

running=() # number of each running process, by process id
tick=
end() {
    ((${#running[@]} == 0)) || kill -"$1" "${!running[@]}" 2>/dev/null || true
}
interrupt=TERM
trap 'end TERM' TERM HUP
trap 'end $interrupt; interrupt=KILL' INT
trap 'end KILL; [[ -z $tick ]] || kill "$tick" 2>/dev/null || true' EXIT

logs=$(mktemp -d "${TMPDIR:-/tmp}/siman-gpus.XXXXXX")
((n == 1)) || echo "processes 1 to $((n - 1)) write to $logs"
for ((i = 0; i < n; i++)); do
    make_command "$i"
    if ((i == 0)); then
        "${command[@]}" &
    else
        "${command[@]}" >"$logs/$i.log" 2>&1 &
    fi
    running[$!]=$i
done

failed=0
while ((${#running[@]})); do
    # Wait for a process to end, or a signal; at most a second, because bash can miss an end.
    sleep 1 &
    tick=$!
    wait -n "$tick" "${!running[@]}" || true
    { kill "$tick" && wait "$tick"; } 2>/dev/null || true
    for pid in "${!running[@]}"; do
        ! kill -0 "$pid" 2>/dev/null || continue
        code=0
        wait "$pid" || code=$?
        i=${running[pid]}
        unset "running[$pid]"
        ((!code)) || echo "process $i ended with status $code" >&2
        if ((code && !failed)); then
            failed=$code
            deadline=$((SECONDS + host_timeout + 30))
            ((i == 0)) || tail -n 20 "$logs/$i.log" >&2
        fi
    done
    ((!failed || SECONDS < deadline)) || end KILL
done
exit "$failed"
