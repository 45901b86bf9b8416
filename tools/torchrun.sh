# Sourced by dist_train.sh and dist_test.sh.

# run_ranks RANKS SCRIPT [ARGUMENTS]: the script once per rank, under torchrun.
run_ranks() {
    local ranks=$1 where
    shift
    case $ranks in
        0 | -*)  # torchrun would fail without a message.
            echo "$0: RANKS must be at least 1, got $ranks" >&2
            exit 2
            ;;
    esac
    if [ "${NNODES:-1}" = 1 ] && [ -z "${PORT:-}" ]; then
        where=(--standalone)  # a free port of this machine
    else
        local nnodes=${NNODES:-1} node=${NODE_RANK:-0}
        local address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
        # Reports problems for which torchrun would be silent or show a stack trace.
        "${PYTHON:-python}" "$here/rendezvous.py" "$nnodes" "$node" "$address" "$port"
        where=(--nnodes "$nnodes" --node-rank "$node"
            --master-addr "$address" --master-port "$port")
        if [ "${MAX_RESTARTS:-0}" != 0 ]; then
            # The static rendezvous above would give restarted ranks the addresses of
            # dead ones; this one agrees on new ones.
            where=(--nnodes "$nnodes" --rdzv-backend c10d --rdzv-id agvm
                --rdzv-endpoint "$address:$port"
                --rdzv-conf "is_host=$([ "$node" = 0 ] && echo true || echo false)")
        fi
    fi
    # One thread per rank: torchrun would set the same, with a warning.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" \
        "$here/torchrun.py" "${where[@]}" --nproc-per-node "$ranks" \
        --max-restarts "${MAX_RESTARTS:-0}" "$@"
}
