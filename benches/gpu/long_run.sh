#!/usr/bin/env bash
# The first long run on a GPU: a model worth having out of some minutes on a machine that has neither
# Rust nor a network, and that is given back after a fixed time.
#
#     benches/gpu/bundle.sh gpu-bundle
#     benches/gpu/long_run.sh pack gpu-bundle TRAIN_DIR VALID_DIR [TASKS_DIR]
#     # on the machine with the GPU:
#     bash gpu-bundle/long_run.sh [STAGE…]
#
# Where a call may last ten minutes, two calls on the same machine give the training eight of them:
#
#     TOTAL=200 bash gpu-bundle/long_run.sh tests timing precision
#     TOTAL=580 bash gpu-bundle/long_run.sh train judge finetune
#
# Stages, in this order: tests, timing, precision, train, judge, finetune. Each has a time limit of its
# own, a failed one does not stop the others, and one that is done is passed over. After every stage
# the logs so far are in $OUT/results.tar.gz; the models come as $OUT/models.tar.xz.00, .01, …:
# `cat models.tar.xz.* | tar xJ` puts them together.
#
# Environment:
#   TOTAL      seconds for the whole call; the training takes what is left of them      [570]
#   TRAIN      most seconds of the training                                             [480]
#   RESULTS    where to work; kept between calls on the same machine    [$HOME/elektron-long]
#   OUT        where to put what comes back: at most 8 files of 16 MiB    [$RESULTS/out]
#   PRESET, BATCH, SEQ, RATE   the model, rows per step, tokens per row, learning rate
#                                                                   [small, 128, 128, 5e-4]
#   EXTRA      other flags of `elektron pretrain`, such as "--bias-correction true"     [none]
#   DEVICE     cuda, or cpu for a rehearsal                                            [cuda]
#   REHEARSE=1 tiny, on the CPU, within two minutes, to see that every stage works
# Stages are called by their names.
# shellcheck disable=SC2329
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
begin=$SECONDS

pack() { # FOLDER TRAIN_DIR VALID_DIR [TASKS_DIR]
    set -e
    local folder="$1" train="$2" valid="$3" tasks="${4:-}" program
    mkdir -p "$folder/text" "$folder/quality"
    if [ ! -e "$folder/elektron.gz" ]; then
        program="$(mktemp)"
        cp "${ELEKTRON:?the bundle has no elektron.gz: run bundle.sh first, or name the program by ELEKTRON}" "$program"
        strip "$program"
        gzip -9c "$program" > "$folder/elektron.gz.part"
        mv "$folder/elektron.gz.part" "$folder/elektron.gz"
        rm "$program"
    fi
    program="$(mktemp -d)"
    gunzip -c "$folder/elektron.gz" > "$program/elektron"
    chmod +x "$program/elektron"
    # Documents are parted by an empty line, files too.
    for part in train valid; do
        local from="$train"
        [ "$part" = train ] || from="$valid"
        find "$from" -maxdepth 1 -type f \( -name '*.txt' -o -name '*.txt.gz' \) -print0 | sort -z \
            | while IFS= read -r -d '' file; do
                case "$file" in *.gz) gunzip -c "$file" ;; *) cat "$file" ;; esac
                printf '\n\n'
            done > "$program/$part.txt"
        [ "$(wc -c < "$program/$part.txt")" -gt 1000 ] || { echo "error: no text in $from" >&2; exit 1; }
        xz -T0 "-${XZ_LEVEL:-9}" -c "$program/$part.txt" > "$folder/text/$part.txt.xz"
    done
    if [ ! -e "$folder/vocabulary/tokenizer.json" ]; then
        "$program/elektron" tokenizer train --input "$program/train.txt" --vocab-size "${VOCAB_SIZE:-30522}" \
            --output "$folder/vocabulary"
    fi
    rm -r "$program"
    cp "$here/../quality/"*.py "$folder/quality/"
    if [ -n "$tasks" ]; then
        rm -rf "$folder/tasks"
        mkdir "$folder/tasks"
        cp -rL "$tasks/banking77" "$tasks/wnut17" "$folder/tasks/"
    fi
    cp "${BASH_SOURCE[0]}" "$folder/long_run.sh"
    local kib
    kib="$(du -sk "$folder" | cut -f1)"
    echo "$folder: $((kib / 1024)) MiB"
    if [ "$kib" -gt $((60 * 1024)) ]; then
        echo "error: the folder is larger than 60 MiB: leave out text" >&2
        exit 1
    fi
}

if [ "${1:-}" = pack ]; then
    shift
    [ $# -ge 3 ] || { sed -n '2,8p' "${BASH_SOURCE[0]}" >&2; exit 2; }
    pack "$@"
    exit
fi

cd "$here" || exit 1
if [ -n "${REHEARSE:-}" ]; then
    : "${DEVICE:=cpu}" "${PRESET:=tiny}" "${BATCH:=8}" "${SEQ:=32}" "${RATE:=1e-3}" "${TOTAL:=240}" "${TRAIN:=30}"
    : "${TIMING_STEPS:=20}" "${PRECISION_STEPS:=12}" "${EVAL_SECONDS:=8}" "${EVAL_ROWS:=40}"
fi
: "${DEVICE:=cuda}" "${PRESET:=small}" "${BATCH:=128}" "${SEQ:=128}" "${RATE:=5e-4}" "${TOTAL:=570}" "${TRAIN:=480}"
: "${TIMING_STEPS:=400}" "${PRECISION_STEPS:=300}" "${EVAL_SECONDS:=30}" "${EVAL_ROWS:=400}"
read -ra extra <<< "${EXTRA:-}"
results="${RESULTS:-$HOME/elektron-long}"
mkdir -p "$results"
results="$(cd "$results" && pwd)"
out="${OUT:-$results/out}"
mkdir -p "$out"
run="$results/run"
if [ ! -x "$results/elektron" ]; then
    gunzip -c elektron.gz > "$results/elektron" && chmod +x "$results/elektron" || exit 1
fi
elektron="$results/elektron"
export ELEKTRON_ROOT="$here" ELEKTRON_CACHE="$results/kernels" ELEKTRON_REPEATS="${ELEKTRON_REPEATS:-1}"
[ "$DEVICE" = cuda ] && export ELEKTRON_REQUIRE_GPU=1
if [ -z "${ELEKTRON_CUDA_LIBS:-}" ] && command -v python3 > /dev/null; then
    # The libraries that PyTorch brought, where the system's loader knows none.
    site="$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2> /dev/null)"
    export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$site"
fi
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
failed=0

left() { echo $((TOTAL - (SECONDS - begin))); }

bring_back() {
    tar czf "$out/results.tar.gz.part" -C "$results" --exclude=./elektron --exclude=./suite --exclude=./kernels \
        --exclude=./shards --exclude=./out --exclude='*.safetensors' --exclude='./out*' --exclude='./*/generator' --exclude='./*/discriminator' . 2> /dev/null
    mv "$out/results.tar.gz.part" "$out/results.tar.gz"
}
trap bring_back EXIT
trap 'exit 143' TERM INT

part() { # name, most seconds, command…
    local name="$1" limit="$2" code=0 start=$SECONDS
    shift 2
    [ -e "$results/$name.done" ] && return 0
    [ "$limit" -le "$(left)" ] || limit="$(left)"
    if [ "$limit" -lt 3 ]; then
        echo "$name: no time left" | tee -a "$results/summary.txt"
        failed=1
        return 1
    fi
    timeout -s TERM -k 20 "$limit" "$@" > "$results/$name.log" 2>&1 || code=$?
    echo "$name: exit $code, $((SECONDS - start)) s" | tee -a "$results/summary.txt"
    if [ "$code" = 0 ]; then
        touch "$results/$name.done"
    else
        failed=1
        tail -n 12 "$results/$name.log"
    fi
    bring_back
    return "$code"
}

pretrain() { # output, steps, flags…
    local output="$1" steps="$2"
    shift 2
    "$elektron" pretrain --train text/train.txt.xz --validation text/valid.txt.xz --tokenizer vocabulary \
        --shards "$results/shards" --preset "$PRESET" --batch-size "$BATCH" --seq-len "$SEQ" \
        --learning-rate "$RATE" --steps "$steps" --device "$DEVICE" --log-to jsonl --output "$output" \
        ${extra[@]+"${extra[@]}"} "$@"
}

# What the machine does, and whether the kernels are right on it, the cheapest first.
stage_tests() {
    part doctor 100 "$elektron" doctor
    if [ ! -e suite.gz ]; then
        echo "tests: the bundle has no suite.gz" | tee -a "$results/summary.txt"
        return
    fi
    [ -x "$results/suite" ] || { gunzip -c suite.gz > "$results/suite" && chmod +x "$results/suite"; }
    part products 30 "$results/suite" device::products_agree --nocapture
    part ops 60 "$results/suite" device::every_op --nocapture
    part golden 30 "$results/suite" device::golden_cases --nocapture
    part steps 60 "$results/suite" device:: --skip every_op --skip golden --skip products --nocapture
}

# Tokenizes the text, compiles the kernels and measures the speed that the plan of the training needs.
timing() {
    rm -rf "$results/timing"
    pretrain "$results/timing" "$TIMING_STEPS" --log-every $((TIMING_STEPS / 10)) --eval-rows 20 --quiet || return
    python3 - "$results" << 'PYTHON'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1] + "/timing/metrics.jsonl")]
speeds = [line["tok_per_s"] for line in lines if "tok_per_s" in line]
# The first half warms up: kernels are compiled, clocks rise.
speed = statistics.median(speeds[len(speeds) // 2:])
tokens = [line["tokens"] / line["step"] for line in lines if "tokens" in line][-1]
open(sys.argv[1] + "/speed", "w").write(f"{speed:.0f} {tokens:.0f}\n")
print(f"{speed:.0f} tokens per second, {tokens:.0f} tokens per step")
PYTHON
}
stage_timing() { part timing 120 bash "$here/long_run.sh" __timing; }

# bf16 against fp32 on equal data from equal weights.
precision() {
    local name
    for name in bf16 fp32; do
        rm -rf "${results:?}/$name"
        pretrain "$results/$name" "$PRECISION_STEPS" --precision "$name" --seed 1 \
            --log-every $((PRECISION_STEPS / 12 > 0 ? PRECISION_STEPS / 12 : 1)) --quiet || return
    done
    python3 - "$results" << 'PYTHON'
import json, sys
read = lambda name: {line["step"]: line for line in map(json.loads, open(f"{sys.argv[1]}/{name}/metrics.jsonl")) if "gen_loss" in line}
a, b = read("bf16"), read("fp32")
rows = ["| steps up to | generator's loss, bf16 | fp32 | difference | discriminator's loss, bf16 | fp32 | difference |",
        "|---:|---:|---:|---:|---:|---:|---:|"]
for step in sorted(a.keys() & b.keys()):
    cells = [str(step)]
    for key in ("gen_loss", "disc_loss"):
        x, y = a[step][key], b[step][key]
        cells += [f"{x:.4f}", f"{y:.4f}", f"{x - y:+.5f}"]
    rows.append("| " + " | ".join(cells) + " |")
open(sys.argv[1] + "/precision.md", "w").write("\n".join(rows) + "\n")
print("\n".join(rows))
PYTHON
}
stage_precision() { part precision 90 bash "$here/long_run.sh" __precision; }

# As many steps as the time allows, so that the learning rate reaches 0 at its end.
train() { # seconds
    local seconds="$1" speed per_step steps evals code=0 step
    if [ -e "$run/run.json" ]; then
        timeout -s TERM -k 15 "$seconds" "$elektron" pretrain --resume "$run" --json > "$results/train.jsonl" || code=$?
    else
        read -r speed per_step < "$results/speed" || { echo "no speed was measured" >&2; return 1; }
        # A twentieth of the time is for reading the text, held-out evaluations and checkpoints.
        steps=$((speed * (seconds * 95 / 100 - ${STARTUP:-5}) / per_step))
        evals=$((speed * EVAL_SECONDS / per_step))
        [ "$steps" -ge 10 ] && [ "$evals" -ge 1 ] || { echo "only $steps steps in $seconds s" >&2; return 1; }
        echo "$steps steps of $per_step tokens at $speed tokens per second, held-out figures every $evals steps"
        timeout -s TERM -k 15 "$seconds" "$elektron" pretrain --train text/train.txt.xz \
            --validation text/valid.txt.xz --tokenizer vocabulary --shards "$results/shards" --preset "$PRESET" \
            --batch-size "$BATCH" --seq-len "$SEQ" --learning-rate "$RATE" --steps "$steps" --device "$DEVICE" \
            --log-to jsonl --log-every $((steps / 400 + 1)) --eval-every "$evals" --eval-rows "$EVAL_ROWS" \
            --save-every $((evals * 2)) --keep 1 --seed 1 ${extra[@]+"${extra[@]}"} --output "$run" --json \
            > "$results/train.jsonl" || code=$?
    fi
    if [ "$code" != 0 ]; then
        # Stopped early, or broken: the newest checkpoint holds the models.
        echo "training ended with exit code $code"
        step="$(find "$run/checkpoints" -name 'step-*' -printf '%f\n' 2> /dev/null | sort | tail -n 1 | grep -o '[0-9]\+' | head -n 1)"
        [ -n "$step" ] || return 1
        "$elektron" pretrain --resume "$run" --steps "$((10#$step))" --quiet || return 1
    fi
    [ -e "$run/discriminator/model.safetensors" ]
}
pack_models() {
    python3 - "$run" "$out" << 'PYTHON'
import io, lzma, os, sys, tarfile
run, out = sys.argv[1:]
# The shared embeddings are in both files: a window as large as both finds them again.
filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20}]
buffer = io.BytesIO()
with lzma.open(buffer, "w", format=lzma.FORMAT_XZ, filters=filters) as xz, tarfile.open(fileobj=xz, mode="w") as tar:
    for name in ("discriminator", "generator", "model"):
        if os.path.isdir(os.path.join(run, name)):
            tar.add(os.path.join(run, name), name)
data, size = buffer.getvalue(), 15 << 20
count = -(-len(data) // size)
print(f"{len(data) / 2**20:.1f} MiB in {count} pieces")
if count > 4:
    sys.exit("error: more than fits what comes back; the models stay on this machine")
for i in range(count):
    with open(f"{out}/models.tar.xz.{i:02}", "wb") as f:
        f.write(data[i * size : (i + 1) * size])
PYTHON
}
stage_train() {
    # Packing, the report and a look at the models come after it.
    local seconds=$(($(left) - ${RESERVE:-45}))
    [ "$seconds" -le "$TRAIN" ] || seconds="$TRAIN"
    part train $((seconds + 30)) bash "$here/long_run.sh" __train "$seconds"
    [ -e "$run/metrics.jsonl" ] || return
    part report 20 "$elektron" report "$run" --x tokens --output "$results/report.html" --svg "$results/curves.svg"
    if [ -e "$run/discriminator/model.safetensors" ]; then
        part models 90 bash "$here/long_run.sh" __pack_models
    fi
}

stage_judge() {
    part eval 60 "$elektron" eval --generator "$run/generator" --discriminator "$run/discriminator" \
        --input text/valid.txt.xz --device "$DEVICE" --seq-len "$SEQ" --rows "$EVAL_ROWS" --json
    if python3 -c 'import torch, transformers' 2> /dev/null; then
        part judge 90 bash "$here/long_run.sh" __judge
    else
        echo "judge, finetune: python3 has no torch with transformers" | tee -a "$results/summary.txt"
    fi
}
judge() {
    # Every fourth paragraph of the training text is enough for the frequencies of its words.
    xz -dc text/train.txt.xz | awk 'NF && ++n % 4 == 0' > "$results/frequencies.txt"
    xz -dc text/valid.txt.xz > "$results/valid.txt"
    python3 quality/judge.py "$run" --text "$results/valid.txt" --training-text "$results/frequencies.txt" \
        --rows "$EVAL_ROWS" --seq "$SEQ" --device "$DEVICE" --json "$results/judge.json"
    local code=$?
    rm -f "$results/valid.txt" "$results/frequencies.txt"
    return "$code"
}

# With one learning rate and seed; benches/quality/run.py does the whole comparison elsewhere.
stage_finetune() {
    python3 -c 'import torch, transformers' 2> /dev/null && [ -d tasks ] && [ -e "$run/discriminator/config.json" ] || return
    local task limit=()
    [ -z "${REHEARSE:-}" ] || limit=(--limit 60 --epochs 1 --longest 32)
    for task in banking77 wnut17; do
        part "finetune_$task" 90 python3 quality/finetune.py --model "$run/discriminator" --tokenizer vocabulary \
            --task "$task" --tasks tasks --learning-rate 3e-4 --device "$DEVICE" --out "$results/finetune_$task.json" \
            ${limit[@]+"${limit[@]}"}
    done
}

# `timeout` runs programs, not functions: `part` calls this script for those.
case "${1:-}" in
    __*) trap - EXIT TERM INT; name="${1#__}"; shift; "$name" "$@"; exit ;;
esac

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(tests timing precision train judge finetune)
for stage in "${stages[@]}"; do
    declare -F "stage_$stage" > /dev/null || { echo "error: no stage is called $stage" >&2; exit 2; }
done
for stage in "${stages[@]}"; do
    "stage_$stage"
done
cat "$results/summary.txt"
exit "$failed"
