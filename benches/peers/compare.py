#!/usr/bin/env python3
"""One training step of Elektron, of plain PyTorch and of txtai's class, in alternation on one machine.

    pip install torch transformers txtai
    cargo build --release --benches
    python3 benches/peers/compare.py [--case small-g256-t128-b8] [--rounds 3] [--precisions fp32,bf16] [--out FILE.json]

Every round runs each once, in turn, in a process of its own (median of ten steps after two). Prints each one's median over
the rounds with the least and the most, and the ratios round by round.
"""
import argparse, functools, glob, itertools, json, os, re, statistics, subprocess, sys

parser = argparse.ArgumentParser()
parser.add_argument("--case", default="small-g256-t128-b8")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--python", default=sys.executable)
parser.add_argument("--precisions", default="fp32,bf16", help="bf16: autocast on their side")
parser.add_argument("--out")
args = parser.parse_args()

here = os.path.dirname(os.path.abspath(__file__))
benches = [p for p in glob.glob(os.path.join(here, "../../target/release/deps/step-*")) if not p.endswith(".d")]
bench = max(benches, key=os.path.getmtime)
preset, gen, seq, batch = re.fullmatch(r"(\w+)-g(\d+)-t(\d+)-b(\d+)", args.case).groups()
assert preset == "small", "the PyTorch script knows small only"

def elektron(precision):
    out = subprocess.run([bench, "--device", "cpu", "--json", "--threads", str(args.threads), "--steps", str(args.steps),
                          "--precision", precision, args.case], capture_output=True, text=True, check=True).stdout
    r = next(r for r in map(json.loads, out.splitlines()) if r["case"] == args.case)
    return dict(tok_per_s=r["tok_per_s"], peak_rss_mib=r["peak_rss_mib"])

def torch(style, precision):
    out = subprocess.run([args.python, os.path.join(here, "torch_step.py"), "--style", style, "--disc", "pre" if style == "google" else "token",
                          "--batch", batch, "--seq", seq, "--genhidden", gen, "--threads", str(args.threads), "--steps", str(args.steps)]
                         + ["--bf16"] * (precision == "bf16"), capture_output=True, text=True, check=True).stdout
    r = json.loads(out.strip().splitlines()[-1])
    return dict(tok_per_s=r["tok_s_median"], peak_rss_mib=r["peak_rss_mib"])

precisions = args.precisions.split(",")
styles = {"pytorch": "google", "txtai": "txtai"}
runs = {f"elektron {p}": functools.partial(elektron, p) for p in precisions}
runs |= {f"{peer} {p}": functools.partial(torch, style, p) for peer, style in styles.items() for p in precisions}
results = {name: [] for name in runs}
for i in range(args.rounds):
    for name, run in runs.items():
        results[name].append(run())
        print(f"round {i + 1} {name}: {results[name][-1]}", flush=True)
for name, rows in results.items():
    rates = [r["tok_per_s"] for r in rows]
    print(f"{name}: {statistics.median(rates):.0f} tok/s ({min(rates):.0f} to {max(rates):.0f}), peak {max(r['peak_rss_mib'] for r in rows)} MiB")
for ours, theirs in itertools.product(precisions, runs):
    if not theirs.startswith("elektron"):
        ratios = [a["tok_per_s"] / b["tok_per_s"] for a, b in zip(results[f"elektron {ours}"], results[theirs])]
        memory = max(r["peak_rss_mib"] for r in results[f"elektron {ours}"]) / max(r["peak_rss_mib"] for r in results[theirs])
        print(f"elektron {ours} / {theirs}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), memory {memory:.2f}")
if args.out:
    json.dump(dict(case=args.case, threads=args.threads, results=results), open(args.out, "w"), indent=1)
