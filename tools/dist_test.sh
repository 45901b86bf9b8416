#!/usr/bin/env bash
# Test on several ranks of this machine, on GPUs or, without any, on CPU cores:
#   tools/dist_test.sh CONFIG CHECKPOINT RANKS [arguments of tools/test.py]
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT RANKS [arguments of tools/test.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
. "$here/torchrun.sh"
run_ranks "$3" "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
