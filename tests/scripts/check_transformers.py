#!/usr/bin/env python3
"""Loads a run's models with transformers and compares logits and token ids with Elektron's.

    pip install torch transformers safetensors
    python check_transformers.py RUN --elektron target/release/elektron --text TEXT…
    python check_transformers.py --tokenizers ../fixtures/tokenizer_directories.json \\
        --elektron … --text TEXT…

Checks that no key is missing or unexpected, that `elektron forward` and transformers give the same
logits on a batch of the text, and that every paragraph of the text (.txt) has the same ids in
Elektron's shards and in AutoTokenizer's output. Then saves both models with transformers and runs
`elektron forward` on what it wrote.

With --tokenizers, trains one step with every tokenizer of the file that make_tokenizer_cases.py
wrote, and checks that AutoTokenizer gives the same ids for what `elektron pretrain` exported as for
the given tokenizer, in the frame of training. Neither torch nor version 5 is needed for this:
version 4 must load what is exported as well.
"""
import argparse, glob, json, os, struct, subprocess, sys, tempfile

parser = argparse.ArgumentParser()
parser.add_argument("run", nargs="?")
parser.add_argument("--elektron", default="target/release/elektron")
parser.add_argument("--text", nargs="+", required=True)
parser.add_argument("--tokenizers")
args = parser.parse_args()

def check_tokenizers():
    import transformers
    from transformers import AutoTokenizer

    fixture = json.load(open(args.tokenizers, encoding="utf-8"))
    text = [line.strip() for line in open(args.text[0], encoding="utf-8") if line.strip()][:300]
    is_5 = int(transformers.__version__.split(".")[0]) >= 5
    failed = 0
    for case in fixture["cases"]:
        with tempfile.TemporaryDirectory() as tmp:
            given, out = os.path.join(tmp, "given"), os.path.join(tmp, "out")
            os.mkdir(given)
            for name, at in case["files"].items():
                with open(os.path.join(given, name), "w", encoding="utf-8", newline="") as f:
                    f.write(fixture["contents"][at])
            run = subprocess.run([args.elektron, "pretrain", "--train", args.text[0], "--tokenizer", given, "--preset", "tiny", "--steps", "1",
                                  "--batch-size", "2", "--seq-len", "32", "--output", out, "--log-to", "jsonl", "--quiet", "--device", "cpu"],
                                 capture_output=True, text=True)
            problems = []
            if run.returncode:
                problems.append(run.stderr)
            for part in ("discriminator", "generator") if not run.returncode else ():
                ours = AutoTokenizer.from_pretrained(os.path.join(out, part))
                ids = lambda tokenizer, lines: tokenizer(lines, add_special_tokens=False)["input_ids"]
                if ids(ours, fixture["lines"]) != case["ids"]:
                    problems.append(f"{part}: other ids, {ids(ours, fixture['lines'])} for {case['ids']}")
                # Version 4 reads some of the given tokenizers differently, or not at all.
                if is_5 and ids(ours, text) != ids(AutoTokenizer.from_pretrained(given), text):
                    problems.append(f"{part}: other ids of the text")
                single, pair = ours(text[0]), ours(text[0], text[1])
                a, b = ids(ours, text[:2])
                cls, sep = ours.cls_token_id, ours.sep_token_id
                if single["input_ids"] != [cls, *a, sep]:
                    problems.append(f"{part}: another frame")
                if pair["input_ids"] != [cls, *a, sep, *b, sep] or pair["token_type_ids"] != [0] * (len(a) + 2) + [1] * (len(b) + 1):
                    problems.append(f"{part}: another frame of pairs")
                if None in (ours.pad_token_id, ours.mask_token_id, ours.unk_token_id):
                    problems.append(f"{part}: special tokens without a name")
                if len(ours(text, truncation=True)["input_ids"][0]) > ours.model_max_length or ours.model_max_length > 10**6:
                    problems.append(f"{part}: model_max_length {ours.model_max_length}")
            failed += bool(problems)
            print(case["name"], "differs:" if problems else "is equal", *problems)
    print(f"transformers {transformers.__version__}: {len(fixture['cases']) - failed} of {len(fixture['cases'])} tokenizers are equal")
    sys.exit(bool(failed))

if args.tokenizers:
    check_tokenizers()

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining, ElectraForTokenClassification)

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
        flags, = struct.unpack_from("<I", data, 12)
        width = 4 if flags & 1 else 2
        tokens, paragraphs, _ = struct.unpack_from("<QQQ", data, 16)
        ids = struct.unpack_from(f"<{tokens}{'H' if width == 2 else 'I'}", data, 256)
        at = 256 + (tokens * width + 7) // 8 * 8
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
