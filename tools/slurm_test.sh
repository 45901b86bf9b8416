#!/usr/bin/env bash
# Test on a Slurm cluster, one task per GPU:
#   [GPUS=16] tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT \
#       [arguments of tools/test.py]
# Environment variables: GPUS (8), GPUS_PER_NODE (8, or GPUS if fewer), CPUS_PER_TASK (5),
# SRUN_ARGS (further options of srun, split at white space), PORT (29500).
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
. "$here/slurm.sh"
run_tasks "$1" "$2" "$here/test.py" "$3" "$4" --launcher=slurm "${@:5}"
