#!/usr/bin/env bash
# Train one job on several machines: run this on each machine.
# Usage: torchrun.sh STORE/work/DIGEST/job.json HEAD NUM_MACHINES NUMBER [GPUS]
#   HEAD: host name of machine 0; NUMBER: number of this machine, from 0; GPUS: GPUs of this machine, default all
set -euo pipefail
job=$1 head=$2 num_machines=$3 number=$4 gpus=${5:-gpu}
# A stopped trainer first finishes its micro-batch and saves; torchrun would kill it after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
export HF_HUB_OFFLINE=1
exec torchrun --nnodes="$num_machines" --node-rank="$number" --nproc-per-node="$gpus" \
  --master-addr="$head" --master-port="${MASTER_PORT:-29500}" -m longred.training "$job"
