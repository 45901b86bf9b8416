# Sourced by slurm_train.sh and slurm_test.sh.

# run_tasks PARTITION JOB_NAME SCRIPT [ARGUMENTS]: the script once per GPU, under srun.
run_tasks() {
    local partition=$1 job=$2 gpus=${GPUS:-8} per_node srun_args
    shift 2
    # Up to 8 GPUs per machine; fewer tasks all run on one machine.
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    # All lines; read fails as no zero byte ends them.
    read -rd '' -a srun_args <<<"${SIGNAL:+--signal=$SIGNAL} ${SRUN_ARGS:-}" || true
    if ! command -v srun >/dev/null; then
        echo "$0: no srun on the PATH: is this a login node of a Slurm" \
            "cluster? On other machines use tools/dist_train.sh or dist_test.sh" >&2
        exit 127
    fi
    # Two jobs that share a node need different ports; MMEngine's default is 29500.
    if [ -n "${PORT:-}" ]; then export MASTER_PORT=$PORT; fi
    export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
    set -x
    exec srun --partition="$partition" --job-name="$job" \
        --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        ${srun_args[@]+"${srun_args[@]}"} \
        "${PYTHON:-python}" -u "$@"
}
