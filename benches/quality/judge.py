"""Judges a pair of networks on held-out text with transformers, apart from the program that made it.

    python judge.py RUN --text FILES… [--training-text FILES…] [--rows 400] [--json FILE]
    python judge.py --generator DIR --discriminator DIR --text FILES…

RUN holds generator/ and discriminator/, or model/ (one network trained on masked tokens). Rows of T
tokens, a paragraph in its [CLS] … [SEP] after another; max(1, round(0.15 · maskable)) positions per
row, never [CLS], [SEP], [MASK] or padding; of these 85 % show [MASK] and 15 % their own token; the
replacements are drawn from the generator's distribution at temperature 1. Dropout is off.

Printed: the generator's loss and accuracy where [MASK] stands and where a token was kept; what the
frequencies of words in the training text alone would reach at the same positions; the
discriminator's AUC, precision and recall over the tokens that could have been masked, and over all
with [CLS] and [SEP]; the standard deviation of its logits; and the effective rank of the last
layer's output at tokens that could have been masked: exp of the entropy of its singular values,
normalized to a sum of 1. An output that hardly depends on the token has a rank near 1.
"""
import argparse, gzip, json, os

import numpy
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

def paragraphs(paths):
    for path in paths:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
            yield from (line.strip() for line in f if line.strip())

def chunks(items, size):
    held = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held

def token_rows(tokenizer, paths, length, count):
    """`count` rows, evenly from the whole text."""
    ids = []
    for part in chunks(paragraphs(paths), 4096):
        for line in tokenizer(part, add_special_tokens=False)["input_ids"]:
            ids += [tokenizer.cls_token_id, *line, tokenizer.sep_token_id]
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    if not len(rows):
        raise SystemExit(f"error: the text is shorter than a row of {length} tokens")
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]

def word_frequencies(tokenizer, paths, size):
    """Share of each token in a text; every token counts one more, so that none is impossible."""
    counts = numpy.ones(size)
    for part in chunks(paragraphs(paths), 4096):
        for line in tokenizer(part, add_special_tokens=False)["input_ids"]:
            counts += numpy.bincount(line, minlength=size)
    return torch.tensor(counts / counts.sum())

def auc(scores, labels):
    """Area under the ROC curve; ties count by half. None if one class is missing."""
    scores, labels = scores.double().numpy(), labels.numpy()
    _, place, count = numpy.unique(scores, return_inverse=True, return_counts=True)
    rank = (numpy.cumsum(count) - (count - 1) / 2)[place]
    p = int(labels.sum()); n = len(labels) - p
    return float((rank[labels].sum() - p * (p + 1) / 2) / (p * n)) if p and n else None

def detection(logits, replaced):
    """Figures of a decision at probability one half; precision is None if nothing was marked."""
    marked = logits > 0
    hits = int((marked & replaced).sum())
    return dict(auc=auc(logits, replaced), tokens=len(logits),
                precision=hits / int(marked.sum()) if marked.any() else None,
                recall=hits / int(replaced.sum()) if replaced.any() else None,
                accuracy=float((marked == replaced).double().mean()),
                replaced=float(replaced.double().mean()),
                loss=float(F.binary_cross_entropy_with_logits(logits, replaced.float())),
                logit_std=float(logits.double().std()))

def effective_rank(hidden):
    """exp of the entropy of the normalized singular values."""
    values = torch.linalg.svdvals(hidden.double())
    share = values / values.sum()
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))

def mask(rows, maskable, share, mask_id, rng):
    """(selected, shows [MASK]) per position."""
    selected = torch.zeros_like(maskable)
    for row in range(len(rows)):
        places = maskable[row].nonzero().flatten()
        count = min(len(places), max(1, round(share * len(places))))
        selected[row, places[torch.randperm(len(places), generator=rng)[:count]]] = True
    hidden = selected & (torch.rand(rows.shape, generator=rng) < 0.85)
    return selected, hidden

def figures(logits, target):
    return dict(tokens=len(target), loss=float(F.cross_entropy(logits, target)),
                accuracy=float((logits.argmax(-1) == target).double().mean())) if len(target) else None

@torch.no_grad()
def judge(generator, discriminator, rows, tokenizer, share=0.15, seed=1, frequencies=None, batch=32):
    """All figures of a pair, or of a generator alone, on rows of token ids."""
    rng = torch.Generator().manual_seed(seed)
    special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id,
                            tokenizer.pad_token_id])
    maskable = ~torch.isin(rows, special)
    selected, hidden = mask(rows, maskable, share, tokenizer.mask_token_id, rng)
    result = dict(rows=len(rows), row_tokens=rows.shape[1], seed=seed)
    corrupted = rows.clone()
    if generator:
        device = generator.device
        shown = rows.masked_fill(hidden, tokenizer.mask_token_id)
        logits = torch.cat([generator(input_ids=shown[i : i + batch].to(device)).logits
                            [selected[i : i + batch].to(device)].float().cpu()
                            for i in range(0, len(rows), batch)])
        target, at_mask = rows[selected], hidden[selected]
        noise = torch.rand(logits.shape, generator=rng).clamp_min(1e-9)
        corrupted[selected] = (logits - torch.log(-torch.log(noise))).argmax(-1)
        result["generator"] = dict(masked=figures(logits[at_mask], target[at_mask]),
                                   kept=figures(logits[~at_mask], target[~at_mask]),
                                   all=figures(logits, target))
        if frequencies is not None:
            chance = frequencies.log().float().expand(int(at_mask.sum()), -1)
            result["word_frequencies"] = figures(chance, target[at_mask])
    if discriminator:
        device = discriminator.device
        scores, last = [], []
        for i in range(0, len(rows), batch):
            out = discriminator(input_ids=corrupted[i : i + batch].to(device), output_hidden_states=True)
            scores.append(out.logits.float().cpu()); last.append(out.hidden_states[-1].float().cpu())
        scores, last = torch.cat(scores), torch.cat(last)
        replaced = corrupted != rows
        result["discriminator"] = dict(maskable=detection(scores[maskable], replaced[maskable]),
                                       all=detection(scores.flatten(), replaced.flatten()))
    else:
        last = torch.cat([generator(input_ids=shown[i : i + batch].to(device),
                                    output_hidden_states=True).hidden_states[-1].float().cpu()
                          for i in range(0, len(rows), batch)])
    sample = last[maskable][:20000]
    result["effective_rank"] = dict(value=effective_rank(sample), of=last.shape[-1],
                                    centred=effective_rank(sample - sample.mean(0)))
    return result

def load(kind, path):
    network, info = kind.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    missing = [k for k in info["missing_keys"] if k != "generator_lm_head.weight"]
    if missing or info["mismatched_keys"]:
        raise SystemExit(f"error: {path} lacks weights: {missing[:5]} {info['mismatched_keys']}")
    return network.eval()

def summary(result):
    lines = []
    number = lambda x, digits=3: "–" if x is None else f"{x:.{digits}f}"
    if g := result.get("generator"):
        for name, label in (("masked", "at [MASK]"), ("kept", "kept tokens")):
            if g[name]:
                lines.append(f"generator, {label}: loss {number(g[name]['loss'])}, accuracy "
                             f"{number(g[name]['accuracy'])} ({g[name]['tokens']} positions)")
        if f := result.get("word_frequencies"):
            lines.append(f"word frequencies, at [MASK]: loss {number(f['loss'])}, accuracy "
                         f"{number(f['accuracy'])}")
    if d := result.get("discriminator"):
        for name, label in (("maskable", "tokens that could be masked"), ("all", "all tokens")):
            x = d[name]
            lines.append(f"discriminator, {label}: AUC {number(x['auc'])}, precision "
                         f"{number(x['precision'])}, recall {number(x['recall'])}, replaced "
                         f"{number(x['replaced'])}, standard deviation of the logits "
                         f"{number(x['logit_std'])}")
    r = result["effective_rank"]
    lines.append(f"effective rank of the last layer: {number(r['value'], 1)} of {r['of']} "
                 f"({number(r['centred'], 1)} after subtracting the mean)")
    return "\n".join(lines)

def check_self():
    """Figures whose values are known."""
    assert auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])) == 0.75
    assert auc(torch.zeros(5), torch.tensor([True, False, False, True, False])) == 0.5
    assert abs(effective_rank(torch.eye(7)) - 7) < 1e-9
    assert abs(effective_rank(torch.ones(9, 4)) - 1) < 1e-6
    d = detection(torch.tensor([2.0, 1.0, -1.0, -2.0]), torch.tensor([True, False, True, False]))
    assert (d["precision"], d["recall"], d["accuracy"], d["auc"]) == (0.5, 0.5, 0.5, 0.75)
    print("AUC, precision, recall and rank agree with known cases")

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", help="directory with generator/ and discriminator/ or model/")
    parser.add_argument("--generator")
    parser.add_argument("--discriminator")
    parser.add_argument("--tokenizer", help="[default: that of the models]")
    parser.add_argument("--text", nargs="+", help="held-out text, a paragraph per line, also .gz")
    parser.add_argument("--training-text", nargs="+", help="for the word frequencies")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--check", action="store_true", help="check the figures on known cases")
    args = parser.parse_args()
    if args.check:
        return check_self()
    if args.threads:
        torch.set_num_threads(args.threads)
    found = {name: os.path.join(args.run, name) for name in ("generator", "discriminator", "model")
             if args.run and os.path.isdir(os.path.join(args.run, name))}
    generator = args.generator or found.get("generator") or found.get("model")
    discriminator = args.discriminator or found.get("discriminator")
    if not generator or not args.text:
        parser.error("a run or --generator, and --text, are needed")
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or generator)
    pair = (load(ElectraForMaskedLM, generator).to(args.device),
            load(ElectraForPreTraining, discriminator).to(args.device) if discriminator else None)
    for network in pair:
        assert network is None or network.config.vocab_size == len(tokenizer), "another tokenizer"
    rows = token_rows(tokenizer, args.text, args.seq, args.rows)
    frequencies = word_frequencies(tokenizer, args.training_text, len(tokenizer)) \
        if args.training_text else None
    result = judge(*pair, rows, tokenizer, seed=args.seed, frequencies=frequencies)
    if args.json:
        with open(args.json + ".tmp", "w") as f:
            json.dump(result, f, indent=1)
        os.replace(args.json + ".tmp", args.json)
    print(summary(result))

if __name__ == "__main__":
    main()
