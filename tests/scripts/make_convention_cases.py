#!/usr/bin/env python3
"""Writes tests/fixtures/convention.json: values that transformers and txtai compute.

These are learning rates, warm-ups, and rows of texts and pairs.

    pip install transformers torch txtai
    python make_convention_cases.py ../data/wordpiece-8k.txt ../fixtures/convention.json
"""
import json, os, shutil, sys, tempfile
from types import SimpleNamespace

import torch
from transformers import AutoTokenizer, TrainingArguments
from transformers.optimization import get_scheduler
from txtai.data import Texts

SCHEDULES = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.5}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 7}),
    ("cosine_with_min_lr", {"min_lr": 1e-5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.25, "num_cycles": 1}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr": 2e-5, "warmup_lr_rate": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 5}),
    ("warmup_stable_decay", {"num_decay_steps": 4, "num_stable_steps": 3, "warmup_type": "cosine",
                             "decay_type": "1-sqrt", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 4, "warmup_type": "1-sqrt", "decay_type": "linear"}),
]
PEAK = 5e-4


def rates(name, kwargs, warmup, steps):
    """The rate of every update, as the Trainer uses them."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(name, optimizer, warmup, steps, kwargs)
    all = []
    for _ in range(steps):
        all.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(all) < steps:
            scheduler.step()
    return all


def schedules():
    for name, kwargs in SCHEDULES:
        for warmup, steps in [(0, 9), (4, 13), (13, 13)]:
            yield {"name": name, "kwargs": kwargs, "peak": PEAK, "warmup": warmup, "steps": steps,
                   "rates": rates(name, kwargs, warmup, steps)}


def warmups():
    for ratio in [0, 0.01, 0.06, 0.1, 0.3, 0.999]:
        for steps in [1, 7, 10, 100, 12345]:
            # Since transformers 5 a `warmup_steps` below 1 is what `warmup_ratio` was.
            warmup = TrainingArguments.get_warmup_steps(SimpleNamespace(warmup_steps=ratio), steps)
            yield {"ratio": ratio, "steps": steps, "warmup": warmup}


PAIRS = [
    ("The quick brown fox", "jumps over the lazy dog."),
    ("  white\tspace\nand two\r\nlines ", "a second\n\nfield\n"),
    ("", "The first is empty."),
    ("The second is empty.", ""),
    ("Sherlock Holmes", "To Sherlock Holmes she is always the woman."),
    ("one " * 11, "two " * 3),
    ("three " * 4, "four " * 9),
    ("Ünïcödé 中文", "[MASK] 1,000,000"),
    ("five " * 7, "six " * 7),
]
SINGLE = [
    "One field\nof two lines.",
    "  white space around it \n",
    "\n\nfirst line, after blank ones\n\nand a third paragraph\r\n",
    "To Sherlock Holmes she is always the woman. " * 2,
]
LENGTH = 16


def rows(tokenizer):
    data = [{"a": a, "b": b} for a, b in PAIRS]
    for columns, records in [(("a", "b"), data), (("a", None), [{"a": a} for a in SINGLE])]:
        for merge in ["concat", "pack", None]:
            tokens, _ = Texts(tokenizer, columns, LENGTH, merge)(records, None, None, 1000)
            # txtai does not cut rows of whole texts; in training they are cut as the tokenizer cuts.
            cut = None
            if merge is None:
                text = [[r[c] for r in records] for c in columns if c]
                cut = tokenizer(*text, truncation=True, max_length=LENGTH)
            yield {
                "columns": [c for c in columns if c], "merge": merge or "none", "length": LENGTH, "records": records,
                "rows": [{"ids": row["input_ids"], "types": row["token_type_ids"]} for row in tokens],
                **({"cut": [{"ids": i, "types": t} for i, t in zip(cut["input_ids"], cut["token_type_ids"])]} if cut else {}),
            }


with tempfile.TemporaryDirectory() as tmp:
    shutil.copy(sys.argv[1], os.path.join(tmp, "vocab.txt"))
    json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": True},
              open(os.path.join(tmp, "tokenizer_config.json"), "w"))
    tokenizer = AutoTokenizer.from_pretrained(tmp)
    assert len(tokenizer) > 1000, "this is not the vocabulary"
    cases = {"schedules": list(schedules()), "warmups": list(warmups()), "rows": list(rows(tokenizer))}
with open(sys.argv[2], "w") as f:
    f.write("{\n")
    for i, (kind, all) in enumerate(cases.items()):
        f.write(f' "{kind}": [\n' + ",\n".join("  " + json.dumps(case) for case in all) + "\n ]")
        f.write(",\n" if i + 1 < len(cases) else "\n")
    f.write("}\n")
