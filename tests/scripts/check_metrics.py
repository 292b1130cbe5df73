#!/usr/bin/env python3
"""Compares the figures of `elektron eval` with the same ones computed from transformers' models and numpy.

    pip install torch transformers numpy
    python check_metrics.py RUN --elektron target/release/elektron --text HELD_OUT.txt [--rows 400]

The text is tokenized by AutoTokenizer, chained into rows of [CLS] … [SEP] as --merge concat does,
masked by the paper's rule and filled with samples of the generator. Masks and samples are drawn
here, by numpy, so both sides see other positions of the same rows: figures must agree within four
standard errors of their difference. The baseline of the training text is counted by numpy as well,
if --train names the file that the run was trained on (without held-out documents: --held-out 0),
and must agree to six digits.
"""
import argparse, json, math, os, subprocess, sys

import numpy as np
import torch
from transformers import AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--elektron", default="target/release/elektron")
parser.add_argument("--text", required=True)
parser.add_argument("--train")
parser.add_argument("--rows", type=int, default=400)
parser.add_argument("--seq-len", type=int, default=64)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()
gen_dir, disc_dir = os.path.join(args.run, "generator"), os.path.join(args.run, "discriminator")
tokenizer = AutoTokenizer.from_pretrained(disc_dir)
gen, disc = ElectraForMaskedLM.from_pretrained(gen_dir).eval(), ElectraForPreTraining.from_pretrained(disc_dir).eval()
special = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
random = np.random.default_rng(args.seed)

def paragraphs(path):
    lines = [line.strip() for line in open(path, encoding="utf-8") if line.strip()]
    return [ids for ids in tokenizer(lines, add_special_tokens=False)["input_ids"] if ids]

stream = [i for ids in paragraphs(args.text) for i in (tokenizer.cls_token_id, *ids, tokenizer.sep_token_id)]
count = len(stream) // args.seq_len
rows = np.array(stream[:count * args.seq_len]).reshape(count, args.seq_len)
used = min(count, args.rows)
rows = rows[[i * count // used for i in range(used)]]

out = subprocess.run([args.elektron, "eval", "--generator", gen_dir, "--discriminator", disc_dir, "--input", args.text, "--json", "--seq-len",
                      str(args.seq_len), "--rows", str(args.rows), "--device", "cpu"], check=True, capture_output=True, text=True)
ours = json.loads(out.stdout)
assert ours["rows"] == used, (ours["rows"], used)
assert ours["baseline_of"] == "the run's training text"
baseline, ours = ours["baseline"], ours["eval"]

# The paper's rule: round(0.15 · n) positions of a row of n tokens that are not special, at most
# int((0.15 + 0.005) · T), the slots of google-research/electra; 85 % show [MASK], the
# others their token.
masked = np.zeros(rows.shape, bool)
for row, marks in zip(rows, masked):
    may = np.flatnonzero(~np.isin(row, special))
    marks[random.permutation(may)[:max(1, min(round(0.15 * len(row)), int(0.155 * args.seq_len)))]] = True
shows = masked & (random.random(rows.shape) < 0.85)
with torch.no_grad():
    logits = []
    scores = []
    for at in range(0, used, 32):
        shown = np.where(shows[at:at + 32], tokenizer.mask_token_id, rows[at:at + 32])
        logits.append(gen(torch.tensor(shown))[0].numpy()[masked[at:at + 32]].astype(np.float64))
    logits = np.concatenate(logits)
    target, at_mask = rows[masked], shows[masked]
    lse = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    nll = lse - logits[np.arange(len(target)), target]
    hit = logits.argmax(1) == target
    sample = (logits - np.log(-np.log(random.random(logits.shape)))).argmax(1)
    corrupted = rows.copy()
    corrupted[masked] = sample
    for at in range(0, used, 32):
        scores.append(disc(torch.tensor(corrupted[at:at + 32]))[0].numpy().astype(np.float64))
scores, fake = np.concatenate(scores), corrupted != rows
maskable = ~np.isin(rows, special)

def figures(keep):
    """Accuracy, AUC, precision, recall, rate, each with its standard error."""
    s, f = scores[keep], fake[keep]
    called = s > 0
    ranks = np.empty(len(s))
    ranks[np.argsort(s, kind="stable")] = np.arange(1, len(s) + 1)
    # Ties have the mean of their ranks.
    values, inverse, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.bincount(inverse, ranks) / counts)[inverse]
    n1, n0 = f.sum(), (~f).sum()
    auc = (ranks[f].sum() - n1 * (n1 + 1) / 2) / (n1 * n0)
    share = lambda x: (x.mean(), math.sqrt(max(x.mean() * (1 - x.mean()), 1 / len(x)) / len(x))) if len(x) else (0.0, 1.0)
    return [share(called == f), (auc, math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))), share(f[called]), share(called[f]), share(f)]

def mean(x):
    return x.mean(), x.std() / math.sqrt(len(x))

p = fake[maskable].mean()
entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
constant = maskable.mean() * entropy
slope = maskable.mean() * abs(math.log((1 - p) / p)) * math.sqrt(p * (1 - p) / maskable.sum())
bce = np.logaddexp(0, scores) - scores * fake
wanted = {
    "gen_loss": mean(nll), "gen_acc": mean(hit), "gen_mask_loss": mean(nll[at_mask]), "gen_mask_acc": mean(hit[at_mask]),
    "gen_kept_acc": mean(hit[~at_mask]), "disc_loss": mean(bce.ravel()), "disc_constant_loss": (constant, slope),
    # A score's standard deviation is taken from bins an eighth of an octave wide.
    "disc_score_std": (scores[maskable].std(), 0.01 * scores[maskable].std() + 1e-3),
}
for names, keep in ((("disc_acc", "disc_auc", "disc_precision", "disc_recall", "fake_rate"), maskable),
                    (("disc_all_acc", "disc_all_auc", "disc_all_precision", "disc_all_recall", "all_fake_rate"), np.ones_like(maskable))):
    wanted |= zip(names, figures(keep))
failed = 0
for name, (value, error) in wanted.items():
    # Both sides are estimates of the same error.
    within = abs(ours[name] - value) <= 4 * math.sqrt(2) * error + 1e-6
    failed += not within
    print(f"{name:20} {ours[name]:.4f} by elektron, {value:.4f} ± {error:.4f} by transformers{'' if within else ': DIFFERS'}")
missing = set(ours) - set(wanted) - {"loss", "disc_auc_error"}
if missing:
    sys.exit(f"not compared: {missing}")
if args.train:
    counts = np.bincount(np.concatenate(paragraphs(args.train)), minlength=len(tokenizer)).astype(np.float64)
    counts[special] = 0
    q = counts[counts > 0] / counts.sum()
    for name, value in (("unigram_loss", -(q * np.log(q)).sum()), ("unigram_acc", q.max())):
        within = abs(baseline[name] - value) <= 1e-6 * value
        failed += not within
        print(f"{name:20} {baseline[name]:.6f} by elektron, {value:.6f} by numpy{'' if within else ': DIFFERS'}")
sys.exit(f"{failed} figures differ" if failed else 0)
