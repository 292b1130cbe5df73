#!/usr/bin/env bash
# Stages what a machine with a GPU and without Rust needs, in one folder: programs, tests, benches, a little text, the peers' script.
#
#     benches/gpu/bundle.sh [FOLDER]        (default: target/gpu-bundle)
#
# Copy the folder to that machine and run `bash run.sh [RESULTS]` in it. It needs NVIDIA's driver, libnvrtc and (better with) libcublasLt, which
# PyTorch's wheels bring, and this machine's C library or a newer one.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-target/gpu-bundle}"

cargo build --release --bin elektron
cargo build --release --benches
tests="$(cargo test --no-run --test suite --message-format=json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "suite":
        print(message["executable"])')"
newest() { find target/release/deps -maxdepth 1 -type f -executable -name "$1-*" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2; }

rm -rf "$out"
mkdir -p "$out/tests" "$out/peers"
cp target/release/elektron "$out/elektron"
cp "$tests" "$out/suite"
cp "$(newest step)" "$out/bench-step"
cp "$(newest ops)" "$out/bench-ops"
strip "$out/elektron" "$out/suite" "$out/bench-step" "$out/bench-ops"
# A third of the size; run.sh unpacks them.
gzip "$out/elektron" "$out/suite" "$out/bench-step" "$out/bench-ops"
cp -r tests/golden tests/data "$out/tests/"
cp benches/peers/torch_baseline.py "$out/peers/"
cp benches/gpu/run.sh benches/gpu/compare_runs.py benches/gpu/kernel_times.py "$out/"
du -sh "$out"
kib="$(du -sk "$out" | cut -f1)"
if [ "$kib" -gt $((50 * 1024)) ]; then
    echo "error: the bundle is larger than 50 MiB" >&2
    exit 1
fi
