#!/usr/bin/env bash
# Train on a Slurm cluster, one task per GPU:
#   [GPUS=16] tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR \
#       [arguments of tools/train.py]
# Environment variables: GPUS (8), GPUS_PER_NODE (8, or GPUS if fewer), CPUS_PER_TASK (5),
# SRUN_ARGS (further options of srun, split at white space), PORT (29500), SIGNAL (a signal some
# seconds before the end of the allocation, as USR1@300: a run with PreemptionHook saves a
# checkpoint and ends with status 75). In a job that starts itself again until the run is complete:
#   #SBATCH --requeue --signal=USR1@300 --open-mode=append
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR --resume
#   status=$?
#   if [ $status = 75 ]; then scontrol requeue $SLURM_JOB_ID; fi
#   exit $status
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
. "$here/slurm.sh"
run_tasks "$1" "$2" "$here/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
