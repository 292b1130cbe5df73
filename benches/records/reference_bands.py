#!/usr/bin/env python3
"""Makes src/report/bands.json from the records: what runs of a preset had after how many tokens.

    python3 benches/records/reference_bands.py        # from the repository's root; --check compares only

For each preset the lines of all its runs are laid beside each other by tokens. A point of the band is the lowest and the
highest value of any run among the line there and its two neighbours: a line is the mean of 20 or 25 steps and scatters.
"""
import glob, json, os, sys

here = os.path.dirname(os.path.abspath(__file__))
METRICS = ("gen_loss", "disc_loss", "gen_acc", "disc_all_auc")
# Of the tokens that can be masked, and where [MASK] is shown: a band needs them of all its runs.
HONEST = ("gen_mask_loss", "disc_auc")
COMMON = {"flavour": "electra", "share": "all", "head": "pretraining", "seq-len": 128, "batch-size": 16, "grad-accumulation": 1,
          "learning-rate": 5e-4, "mask-prob": 0.15, "weight": 50.0, "gen-weight": 1.0, "temperature": 1.0}
PRESETS = {
    "tiny": {
        "text": "one English book, 1,048 rows, the second stage",
        "records": ["2026-11-27_short-runs/tiny-seed*.jsonl"],
        "vocab_size": 2048,
        "setting": COMMON | {"recipe": "short", "init": "local", "mlm-first": 1.0, "share": "none", "seq-len": 64, "batch-size": 32,
                             "learning-rate": 2e-3, "mask-prob": 0.3, "merge": "segments", "lr-scheduler": "electra",
                             "bias-correction": True, "steps": 500},
    },
    "small": {
        "text": "31 English books and documents",
        "records": ["2026-11-24_small-all-books/*.jsonl"],
        "vocab_size": 30522,
        "setting": COMMON | {"merge": "segments", "lr-scheduler": "electra", "bias-correction": False},
    },
}

def load(path):
    """(tokens, values) a line; the reference loop logs no tokens, its rows are full: 16 x 128 a step."""
    lines = [json.loads(line) for line in open(path)]
    for line in lines:
        # Before there was a figure without special tokens, this name was that of all tokens.
        if "disc_auc" in line and "disc_all_auc" not in line:
            line["disc_all_auc"] = line.pop("disc_auc")
    return [(line.get("tokens", line["step"] * 16 * 128), line) for line in lines if "gen_loss" in line and "eval" not in line]

def band(runs):
    """Runs of unequal length, and of lines that are not at equal tokens: each is looked up at the first one's."""
    longest = max(runs, key=len)
    metrics = METRICS + tuple(metric for metric in HONEST if all(metric in line for run in runs for _, line in run))
    points = {"tokens": [], "runs": []} | {metric: [] for metric in metrics}
    for tokens, _ in longest:
        near = []
        for run in runs:
            if run[-1][0] < tokens:
                continue
            at = min(range(len(run)), key=lambda i: abs(run[i][0] - tokens))
            near.append([line for _, line in run[max(0, at - 1):at + 2]])
        points["tokens"].append(tokens)
        points["runs"].append(len(near))
        for metric in metrics:
            values = [line[metric] for lines in near for line in lines if metric in line]
            points[metric].append([round(min(values), 4), round(max(values), 4)])
    return points

bands = {}
for name, preset in PRESETS.items():
    files = sorted(path for pattern in preset["records"] for path in glob.glob(os.path.join(here, pattern)))
    runs = [load(path) for path in files]
    assert len(runs) >= 2 and all(runs), name
    bands[name] = {"text": preset["text"], "record": os.path.dirname(preset["records"][0]), "vocab_size": preset["vocab_size"],
                   "setting": preset["setting"], "points": band(runs)}
text = json.dumps(bands, separators=(",", ":")).replace('"tokens":[', '\n"tokens":[').replace('},"small"', '},\n"small"') + "\n"
path = os.path.join(here, "..", "..", "src", "report", "bands.json")
if "--check" in sys.argv:
    sys.exit(0 if open(path).read() == text else "src/report/bands.json is not what the records say: run this script")
open(path, "w").write(text)
for name, value in bands.items():
    print(name, len(value["points"]["tokens"]), "points,", max(value["points"]["runs"]), "runs")
