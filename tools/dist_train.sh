#!/usr/bin/env bash
# Train on several ranks of this machine, on GPUs or, without any, on CPU cores:
#   tools/dist_train.sh CONFIG RANKS [arguments of tools/train.py]
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
# If a rank dies, MAX_RESTARTS=3 with --resume restarts the run from its latest checkpoint,
# up to 3 times. A run with PreemptionHook saves a checkpoint on SIGTERM or SIGUSR1 and ends
# with status 75.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG RANKS [arguments of tools/train.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
. "$here/torchrun.sh"
run_ranks "$2" "$here/train.py" "$1" --launcher pytorch "${@:3}"
