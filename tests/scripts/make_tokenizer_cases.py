#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer_cases.json: awkward lines and their ids by transformers' BertTokenizer.

    pip install transformers
    python make_tokenizer_cases.py ../data/wordpiece-8k.txt ../fixtures/tokenizer_cases.json
"""
import json, os, shutil, sys, tempfile

from transformers import AutoTokenizer

LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "“Don’t!” she cried — ‘it isn't mine’…",
    "Ünïcödé Ångström naïve façade coöperate señor",
    "中文字符 and English, 日本語 too; 한국어",
    "emoji 🙂 and signs €£¥ ½ ² ™ ©",
    "tabs\tand\u00a0no-break spaces\u200bzero width",
    "control \u0001 characters \u007f and \ufffd",
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101,
    "electroencephalographically uncharacteristically",
    "[CLS] and [MASK] in the text, [mask] too, and [SEP]",
    "3.14159 1,000,000 10% #hashtag @name a_b c-d e/f",
    "ἤλεκτρον кириллица עברית العربية ไทย",
    "UPPER lower MiXeD İstanbul ẞ",
    "",
]

with tempfile.TemporaryDirectory() as tmp:
    shutil.copy(sys.argv[1], os.path.join(tmp, "vocab.txt"))
    json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": True}, open(os.path.join(tmp, "tokenizer_config.json"), "w"))
    tokenizer = AutoTokenizer.from_pretrained(tmp)
    assert len(tokenizer) > 1000, "this is not the vocabulary"
    cases = [{"text": line, "ids": tokenizer(line, add_special_tokens=False)["input_ids"]} for line in LINES]
with open(sys.argv[2], "w") as f:
    json.dump(cases, f, ensure_ascii=True, indent=1)
    f.write("\n")
