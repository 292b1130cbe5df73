#!/usr/bin/env python3
"""Writes the expected results of the `fill` tests, by the fill-mask pipeline of transformers (version 5).

    pip install torch transformers
    python make_fill_cases.py ../data/wordpiece-8k.txt ../golden/checkpoints/generator ../fixtures/fill_cases.json

The vocabulary has as many tokens as the model has rows of embeddings: the special tokens, and the
first ASCII tokens of the file.
"""
import json, os, shutil, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import pipeline

wordpiece_8k, generator, output = sys.argv[1:]

TEXTS = [
    "To Sherlock [MASK] she is always the woman.",
    "[MASK]",
    "It's the [MASK]'s hat, isn't it?",
    "  He   said:\t“No [MASK]!” ",
    "The [MASK] of the [MASK] was not the man.",
    "a[MASK]b [mask] [MASK] [PAD] [UNK] Ünïcödé",
]

size = json.load(open(os.path.join(generator, "config.json")))["vocab_size"]
tokens = [line.rstrip("\n") for line in open(wordpiece_8k, encoding="utf-8")]
vocabulary = [token for token in tokens if token.isascii()][:size]
with tempfile.TemporaryDirectory() as tmp:
    for name in ["config.json", "model.safetensors"]:
        shutil.copy(os.path.join(generator, name), tmp)
    open(os.path.join(tmp, "vocab.txt"), "w").write("\n".join(vocabulary) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    json.dump(settings, open(os.path.join(tmp, "tokenizer_config.json"), "w"))
    fill = pipeline("fill-mask", model=tmp, device="cpu")
    cases = [{"text": text, "masks": fill(text, top_k=5)} for text in TEXTS]
# Of one mask the pipeline returns its list alone.
for case in cases:
    if isinstance(case["masks"][0], dict):
        case["masks"] = [case["masks"]]
with open(output, "w", encoding="utf-8") as out:
    json.dump(cases, out, indent=1, ensure_ascii=False)
    out.write("\n")
