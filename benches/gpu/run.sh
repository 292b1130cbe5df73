#!/usr/bin/env bash
# The whole proof on a machine with a GPU, from a folder that bundle.sh made: `bash run.sh [RESULTS]` (default: results).
#
# Each part leaves RESULTS/<part>.log and .done; run again, parts that are done are passed over, so a time limit loses nothing.
# The order is by worth: what is wrong shows first, the peers' long comparison comes last.
set -uo pipefail
cd "$(dirname "$0")"
for program in elektron suite bench-step bench-ops; do
    [ -x "$program" ] || { gunzip -c "$program.gz" > "$program" && chmod +x "$program"; } || exit 1
done
results="$(mkdir -p "${1:-results}" && cd "${1:-results}" && pwd)"
export ELEKTRON_ROOT="$PWD" ELEKTRON_REQUIRE_GPU=1 ELEKTRON_REPEATS="${ELEKTRON_REPEATS:-1000}" ELEKTRON_CACHE="$results/kernels" ELEKTRON_RECORDS="$results/baseline"
# The libraries that PyTorch brought, where the system's loader knows none.
if [ -z "${ELEKTRON_CUDA_LIBS:-}" ] && command -v python3 > /dev/null; then
    site="$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2> /dev/null)"
    export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$site"
fi
failed=0

part() { # name, seconds at most, command…
    local name="$1" limit="$2"
    shift 2
    if [ -e "$results/$name.done" ]; then
        return
    fi
    local start=$SECONDS code=0
    timeout "$limit" "$@" > "$results/$name.log" 2>&1 || code=$?
    echo "$name: exit $code, $((SECONDS - start)) s" | tee -a "$results/summary.txt"
    if [ "$code" = 0 ]; then
        touch "$results/$name.done"
    else
        failed=1
        tail -n 15 "$results/$name.log"
    fi
}

part doctor 120 bash -c './elektron doctor --json > "$0/doctor.json"; ./elektron doctor' "$results"
part products 60 ./suite device::products_agree --nocapture
part ops_once 90 env ELEKTRON_REPEATS=1 ./suite device::every_op --nocapture
part golden 60 ./suite device::golden_cases --nocapture
part steps 90 ./suite device:: --skip every_op --skip golden --skip products --nocapture
for device in cpu cuda; do
    part "train_$device" 90 ./elektron pretrain --train tests/data/sherlock-holmes.txt --tokenizer tests/data/wordpiece-8k.txt --preset tiny \
        --steps 200 --warmup-steps 20 --log-every 1 --device "$device" --output "$results/train_$device"
done
part train_compare 20 python3 compare_runs.py "$results/train_cpu/metrics.jsonl" "$results/train_cuda/metrics.jsonl"
part bench_step 90 ./bench-step --json --device cuda --steps 2 small-g256-t128-b128 small-g64-t128-b128 small-g256-t128-b1024 small-g256-t512-b256 base-g256-t128-b1024 \
    base-g256-t512-b256
part bench_step_baseline 90 ./bench-step --device cuda --save
# What is decided by measurement, in alternation: who multiplies, launches that overlap, one graph a step.
part bench_variants 200 bash -c 'for round in 1 2 3; do for variant in "" --products=library --products=own --no-overlap --no-cuda-graph; do
    echo "variant ${variant:-as it is}"; ./bench-step --json --device cuda $variant small-g256-t128-b128 base-g256-t512-b16 || exit 1
done; done'
part bench_ops 240 ./bench-ops --device cuda --save
part torch_quick 240 python3 peers/torch_baseline.py --quick --out "$results/torch.jsonl"
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        part "$tool" 200 env ELEKTRON_REPEATS=1 compute-sanitizer --tool "$tool" --error-exitcode 9 ./suite device::every_op_in_bf16
    done
else
    echo "compute-sanitizer is not installed: memcheck and racecheck were not run" | tee -a "$results/summary.txt"
fi
part ops_repeated 300 ./suite device::every_op --nocapture
if command -v ncu > /dev/null; then
    # A step and some more after the warm-up, kernel by kernel: time, memory traffic, how busy tensor cores and schedulers are, warps. Clocks as they are.
    metrics="gpu__time_duration.sum,dram__bytes.sum,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
    metrics="$metrics,sm__warps_active.avg.pct_of_peak_sustained_active,sm__inst_issued.avg.pct_of_peak_sustained_active"
    for case in small-g256-t128-b128 small-g256-t512-b256 base-g256-t512-b64; do
        part "ncu_$case" 60 ncu --csv --clock-control none --metrics "$metrics" --launch-skip 3500 --launch-count 700 --log-file "$results/ncu_$case.csv" \
            ./bench-step --device cuda --no-cuda-graph --steps 1 "$case"
        part "kernels_$case" 10 bash -c 'python3 kernel_times.py "$0" > "$1"' "$results/ncu_$case.csv" "$results/kernels_$case.csv"
    done
else
    echo "ncu is not installed: no kernel was profiled" | tee -a "$results/summary.txt"
fi
exit "$failed"
