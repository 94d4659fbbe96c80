#!/bin/bash
# All that is measured on one GPU, in one call: run.sh OUT [PARTS]
#   OUT      gets the logs, the samples of nvidia-smi and results.md
#   PARTS    what pack.py made, on a machine without network; else `make setup CONFIG=dev` has been run here
# MEASURE names what to do, in this order: check model launch resume load async rows memory. A launch takes four minutes
# before its first step where Python's files are cold, so give each its time.
set -u
repository=$(cd "$(dirname "$0")/../.." && pwd) here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd) place=/tmp/skyrl-gpu runs=/tmp/skyrl-gpu/runs
mkdir -p $runs && cd "$repository" || exit
if [ $# -gt 1 ]; then
    sh "$here/unpack.sh" "$2" || exit
    export PYTHONPATH=$place/site:$repository/src HF_HUB_OFFLINE=1
    python=python3 offline='--set trainer.verl.trainer.logger=["console","file"]'
else
    python=$repository/.venv/bin/python offline=
fi

stack=("$python" -c 'from skyrl_stack.cli import main; main()')
newest() { ls -d $runs/*_"$1" | tail -1; }
measure() { # NAME COMMAND…: its log, what the GPU did meanwhile, and the table of its run
    nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv,noheader,nounits -lms 500 >"$out/$1.csv" &
    local samples=$! name=$1
    timeout 900 "${@:2}" >"$out/$name.log" 2>&1
    echo "$name: exit code $?"
    kill $samples
    "$python" "$here/summary.py" "$(newest "${name%%-*}")" "$out/$name.csv" | tee -a "$out/results.md"
}
start() { # NAME OPTION…
    # shellcheck disable=SC2086
    measure "$1" "${stack[@]}" launch "$here/gpu.toml" --set name="$1" --set run.root=$runs $offline "${@:2}"
}

for step in ${MEASURE:-check model launch resume load async rows memory}; do
    case $step in
    check) "$python" "$here/machine.py" 2>"$out/machine.err" | tee -a "$out/results.md" || exit ;;
    model)
        "$python" "$here/model.py" "$here/gpu.toml" $place/qwen3 $place/qwen3-0.6b >"$out/model.log" 2>&1
        grep ^model: "$out/model.log"
        ;;
    launch) start sync ;;
    resume) measure sync-resumed "${stack[@]}" resume "$(newest sync)" --set trainer.steps=4 ;;
    load) start load --set trainer.rollouts_per_task=32 --set runtime.max_sandboxes=96 --set trainer.concurrent_episodes=96 ;;
    async) start async --set trainer.rollouts_per_task=32 --set runtime.max_sandboxes=96 --set trainer.concurrent_episodes=96 \
        --set trainer.mode=colocate_async ;;
    rows) PYTHONPATH=${PYTHONPATH:-}:$here "$python" "$here/rows.py" 2>"$out/rows.err" | tee -a "$out/results.md" ;;
    memory)
        "$python" "$here/model.py" "$here/gpu.toml" $place/qwen3 $place/qwen3-1.7b --hidden 2048 --steps 0 >"$out/model-1.7b.log" 2>&1
        for model in qwen3-0.6b qwen3-1.7b; do
            PYTHONPATH=${PYTHONPATH:-}:$here "$python" "$here/memory.py" $place/$model $runs 4096 8192 16384 \
                >"$out/memory-$model.log" 2>&1
            grep ^memory: "$out/memory-$model.log" | tee -a "$out/results.md"
        done
        ;;
    esac
done
