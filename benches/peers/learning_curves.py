#!/usr/bin/env python3
"""Compares learning curves of Elektron and of the PyTorch reference loop (pretrain_torch.py).

    pip install matplotlib
    python3 learning_curves.py RECORD        # a folder with pytorch-seed*.jsonl and elektron-seed*.jsonl

Prints, for each metric, how far the means of the seeds lie apart from step 150 on, in units of the reference's own spread
(its range over the seeds, at each step and averaged over the steps), and draws RECORD/curves.png.
"""
import glob, json, os, statistics as st, sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

folder = sys.argv[1]

def of_all_tokens(d):
    """The reference loop, and Elektron before it had a figure without special tokens, call that of all tokens disc_auc."""
    if "disc_auc" in d:
        d.setdefault("disc_all_auc", d["disc_auc"])
    return d

def load(path):
    rows, held = [], None
    for line in open(path):
        d = of_all_tokens(json.loads(line))
        held = of_all_tokens(d.get("held_out") or d.get("eval") or {}) or held
        if "gen_loss" in d:
            rows.append(d)
    return rows, held

runs = {name: [load(p) for p in sorted(glob.glob(os.path.join(folder, f"{name}-seed*.jsonl")))] for name in ("pytorch", "elektron")}
assert all(len(r) >= 2 for r in runs.values()), "two seeds at least"
figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
for key, axis in zip(("gen_loss", "disc_loss", "gen_acc", "disc_all_auc"), axes.flat):
    steps = [r["step"] for r in runs["pytorch"][0][0]]
    series = {name: [[seed[0][i][key] for seed in seeds] for i in range(len(steps))] for name, seeds in runs.items()}
    for name, colour in (("pytorch", "tab:gray"), ("elektron", "tab:orange")):
        axis.plot(steps, [st.mean(v) for v in series[name]], color=colour, label=name)
        axis.fill_between(steps, [min(v) for v in series[name]], [max(v) for v in series[name]], color=colour, alpha=0.25)
    axis.set_title(key)
    axis.grid(alpha=0.3)
    late = [i for i, s in enumerate(steps) if s >= 150]
    spread = {i: max(series["pytorch"][i]) - min(series["pytorch"][i]) for i in late}
    gap = {i: abs(st.mean(series["elektron"][i]) - st.mean(series["pytorch"][i])) for i in late}
    mean_spread = st.mean(spread.values())
    pointwise = sum(gap[i] <= 2 * spread[i] for i in late)
    pooled = sum(gap[i] <= 2 * mean_spread for i in late)
    held = {name: [round(seed[1][key], 4) for seed in seeds if seed[1]] for name, seeds in runs.items()}
    print(f"{key}: within 2 x the spread at that step {pointwise} of {len(late)}, within 2 x the mean spread ({mean_spread:.4f}) {pooled} of {len(late)}, "
          f"mean gap {st.mean(gap.values()):.4f}; held out {held}")
axes[0][0].legend()
for axis in axes[1]:
    axis.set_xlabel("step")
figure.tight_layout()
figure.savefig(os.path.join(folder, "curves.png"), dpi=90)
