#!/usr/bin/env python3
"""Loads a run's models with transformers and compares logits and token ids with Elektron's.

    pip install torch transformers safetensors
    python check_transformers.py RUN --elektron target/release/elektron --text TEXT…

Checks that no key is missing or unexpected, that `elektron forward` and transformers give the same logits on a batch of
the text, and that every paragraph of the text (.txt) has the same ids in Elektron's shards and in AutoTokenizer's
output. Then saves both models with transformers and runs `elektron forward` on what it wrote.
"""
import argparse, glob, json, os, struct, subprocess, sys, tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining, ElectraForTokenClassification)

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--elektron", default="target/release/elektron")
parser.add_argument("--text", nargs="+", required=True)
args = parser.parse_args()

gen_dir, disc_dir = os.path.join(args.run, "generator"), os.path.join(args.run, "discriminator")
head = json.load(open(os.path.join(disc_dir, "config.json")))["architectures"][0]
classes = {"ElectraForPreTraining": ElectraForPreTraining, "ElectraForTokenClassification": ElectraForTokenClassification}
models = {}
for folder, cls in ((gen_dir, ElectraForMaskedLM), (disc_dir, classes[head])):
    models[folder], info = cls.from_pretrained(folder, output_loading_info=True)
    models[folder].eval()
    problems = {k: v for k, v in info.items() if v}
    assert not problems, f"{folder}: {problems}"
print("no missing or unexpected keys")

tokenizer = AutoTokenizer.from_pretrained(disc_dir)
with tempfile.TemporaryDirectory() as tmp:
    count = 0
    for text in args.text:
        shards = os.path.join(tmp, os.path.basename(text))
        subprocess.run([args.elektron, "prepare", "--input", text, "--tokenizer", disc_dir, "--output", shards],
                       check=True, capture_output=True)
        (path,) = glob.glob(os.path.join(shards, "*.tokens"))
        data = open(path, "rb").read()
        assert data[:8] == b"ELKSHARD"
        width, = struct.unpack_from("<I", data, 12)
        tokens, paragraphs, _ = struct.unpack_from("<QQQ", data, 16)
        ids = struct.unpack_from(f"<{tokens}{'H' if width == 2 else 'I'}", data, 128)
        at = 128 + (tokens * width + 7) // 8 * 8
        ends = [e & (2**63 - 1) for e in struct.unpack_from(f"<{paragraphs}Q", data, at)]
        lines = [line.strip() for line in open(text, encoding="utf-8") if line.strip()]
        want = [w for w in tokenizer(lines, add_special_tokens=False)["input_ids"] if w]
        assert len(want) == len(ends), (len(want), len(ends))
        start = 0
        for w, end in zip(want, ends):
            assert list(ids[start:end]) == w, f"{text}: {tokenizer.decode(w)}"
            start = end
        count += len(want)
    print(f"{count} paragraphs have equal ids")

    enc = tokenizer(lines[:4], padding=True, truncation=True, max_length=64, return_tensors="pt")
    ids, mask = enc["input_ids"], enc["attention_mask"]
    labels = torch.full_like(ids, -100)
    labels[:, 2::7] = torch.where(mask[:, 2::7] == 1, ids[:, 2::7], -100)
    shown = torch.where(labels != -100, torch.full_like(ids, tokenizer.mask_token_id), ids)
    where = (labels != -100).flatten().nonzero().flatten()
    sampled = torch.randint(5, len(tokenizer), where.shape, generator=torch.Generator().manual_seed(1))
    batch = os.path.join(tmp, "in.safetensors")
    save_file(dict(input_ids=shown.contiguous(), labels=labels, attention_mask=mask, sampled_ids=sampled), batch)
    corrupted = ids.flatten().scatter(0, where, sampled).view_as(ids)
    with torch.no_grad():
        gen = models[gen_dir](shown, attention_mask=mask)[0].view(-1, len(tokenizer))[where]
        disc = models[disc_dir](corrupted, attention_mask=mask)[0]

    def compare(g, d, what):
        out = os.path.join(tmp, "out.safetensors")
        subprocess.run([args.elektron, "forward", "--generator", g, "--discriminator", d, "--batch", batch, "--output", out,
                        "--share", "none"], check=True)
        ours = load_file(out)
        keep = mask.bool() if disc.dim() == 2 else torch.ones_like(mask).bool()
        for name, a, b in (("gen_logits", ours["gen_logits"], gen), ("disc_logits", ours["disc_logits"][keep], disc[keep])):
            error = float((a - b).norm() / b.norm())
            assert error < 1e-5, (what, name, error)
            print(f"{what}: {name} within {error:.1e}")

    compare(gen_dir, disc_dir, "written by elektron")
    g, d = os.path.join(tmp, "g"), os.path.join(tmp, "d")
    models[gen_dir].save_pretrained(g)
    models[disc_dir].save_pretrained(d)
    compare(g, d, "written by transformers")
