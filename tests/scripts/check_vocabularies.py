#!/usr/bin/env python3
"""Trains a vocabulary of every kind with `elektron` and compares its ids with `transformers`.

    pip install transformers
    ELEKTRON=target/debug/elektron python check_vocabularies.py
"""
import glob, os, subprocess, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ELEKTRON = os.environ.get("ELEKTRON", "target/debug/elektron")
HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "..", "fixtures", "vocabulary")


def run(*arguments):
    subprocess.run([ELEKTRON, *arguments], check=True, capture_output=True)


def shards(directory):
    """The ids of all paragraphs."""
    ids = []
    for path in glob.glob(os.path.join(directory, "*.tokens")):
        raw = open(path, "rb").read()
        flags, tokens = int.from_bytes(raw[12:16], "little"), int.from_bytes(raw[16:24], "little")
        ids += np.frombuffer(raw, np.uint32 if flags & 1 else np.uint16, tokens, 256).tolist()
    return ids


failed = 0
for text in ["protein", "smiles", "thai", "hindi", "japanese"]:
    path = os.path.join(FIXTURES, text + ".txt")
    lines = open(path).read().splitlines()
    for kind in ["wordpiece", "bpe", "unigram"]:
        for split in ["bert", "whitespace", "bytes", "none", "per-character"]:
            with tempfile.TemporaryDirectory() as tmp:
                size = "560" if split == "bytes" else "160"
                run("tokenizer", "train", "--input", path, "--kind", kind, "--pre-tokenizer", split,
                    "--vocab-size", size, "--output", tmp + "/v")
                run("prepare", "--input", path, "--tokenizer", tmp + "/v", "--output", tmp + "/s")
                tokenizer = AutoTokenizer.from_pretrained(tmp + "/v")
                ids = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
                framed = tokenizer(lines[0])["input_ids"]
                problems = []
                if sum(ids, []) != shards(tmp + "/s"):
                    problems.append("other ids")
                if framed != [2, *ids[0], 3]:
                    problems.append("no frame")
                if 1 in sum(ids, []):
                    problems.append("unknown tokens")
                decoded = tokenizer.decode(ids[0])
                if split in ("bytes", "none", "per-character") and decoded != lines[0]:
                    problems.append(f"decoded as {decoded!r}")
                is_bert = (kind, split) == ("wordpiece", "bert")
                if not is_bert and not isinstance(tokenizer, PreTrainedTokenizerFast):
                    problems.append(type(tokenizer).__name__)
                failed += bool(problems)
                print(text, kind, split, type(tokenizer).__name__, ", ".join(problems) or "ok")
sys.exit(f"{failed} differ" if failed else 0)
