#!/usr/bin/env bash
# Train on Kubernetes as a JobSet (https://jobset.sigs.k8s.io): HOSTS pods with a process in each.
#
#   launch/jobset.sh [--dry-run] NAME IMAGE HOSTS CONFIG WORKDIR [FLAGS...]
#   launch/jobset.sh run1 registry.example/siman-jax:1 4 configs/cifar10.py:resnet20 /runs/run1
#
# IMAGE needs this repository as its working directory and the package installed, for example:
#   FROM python:3.12 / WORKDIR /siman-jax / COPY . . / RUN pip install -e '.[cuda]'
# GPUS is the number of GPUs in each host (default 8). CLAIM is a persistent volume claim (default
# "runs") that all pods can write to at once; it is mounted at /runs, and WORKDIR must be in it.
# --dry-run prints the manifest. For other hardware, such as TPUs with their node selectors, save
# and edit it, and start it with kubectl create -f FILE.
#
# A pod that is evicted or deleted saves and exits with 75. After that, or when a process loses
# another one (69, 134), all pods are started again and continue. Other failures fail the JobSet.
set -euo pipefail

dry_run=false
[[ ${1:-} != --dry-run ]] || { dry_run=true; shift; }
needed=(NAME IMAGE HOSTS CONFIG WORKDIR)
if (($# < ${#needed[@]})); then
    echo "error: ${needed[*]:$#} missing" >&2
    echo "usage: launch/jobset.sh [--dry-run] ${needed[*]} [FLAGS...]" >&2
    exit 2
fi
name=$1 image=$2 hosts=$3 gpus=${GPUS:-8} claim=${CLAIM:-runs}
if [[ ! $hosts =~ ^[1-9][0-9]*$ || ! $gpus =~ ^[0-9]+$ ]]; then
    echo "error: HOSTS is $hosts and GPUS $gpus; both must be numbers" >&2
    exit 2
fi
if [[ $5 != /runs/* ]]; then
    echo "error: WORKDIR is $5; it must be in /runs, where the volume is mounted" >&2
    exit 2
fi

json() { # print each argument as a line of JSON, which is also YAML
    python -c '
import json, sys
for argument in sys.argv[1:]:
    print(json.dumps(argument, ensure_ascii=False))' "$@"
}
# Kubernetes replaces $(NAME) in arguments, and $$ by $, so dollar signs are doubled.
args=("--config=$4" "--workdir=$5" "${@:6}")
args=("--coordinator=$name-hosts-0-0.$name:8476" "--num_processes=$hosts"
    "--process_id=\$(JOB_COMPLETION_INDEX)" "${args[@]//\$/\$\$}")
args_json=$(json "${args[@]}" | sed 's/^/                    - /')
name_json=$(json "$name") image_json=$(json "$image") claim_json=$(json "$claim")

manifest=$(
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name_json
spec:
  failurePolicy:
    maxRestarts: 100
    restartStrategy: BlockingRecreate  # never two runs in one workdir
    rules:
      - name: goOn
        action: RestartJobSet
        onJobFailureReasons: [PodFailurePolicy]
      - name: giveUp
        action: FailJobSet
  replicatedJobs:
    - name: hosts
      template:
        spec:
          completionMode: Indexed
          completions: $hosts
          parallelism: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [69, 75, 134]}
              - action: FailJob
                onPodConditions: [{type: DisruptionTarget, status: "True"}]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              containers:
                - name: train
                  image: $image_json
                  command: [python, -m, siman_jax.main]
                  args:
$args_json
                  resources:
                    limits: {nvidia.com/gpu: $gpus}
                  volumeMounts:
                    - {name: runs, mountPath: /runs}
                    - {name: shm, mountPath: /dev/shm}
              volumes:
                - name: shm  # shared memory, through which reading processes pass images
                  emptyDir: {medium: Memory}
                - name: runs
                  persistentVolumeClaim: {claimName: $claim_json}
YAML
)
if $dry_run; then
    echo "$manifest"
    exit
fi
kubectl create -f - <<<"$manifest"
