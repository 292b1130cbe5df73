"""Fine-tunes one encoder on one task with transformers' classes and a plain PyTorch loop.

    python finetune.py --model DIR --tokenizer DIR --task banking77 --tasks DIR --learning-rate 5e-4 \\
        --seed 1 --out record.json
    python finetune.py --config discriminator.json …     # the same network from random weights

AdamW (weight decay 0.01), linear warm-up over a tenth of the steps, then linear decay to 0, batches
of 32 sequences of similar length, gradient norm at most 1. The record holds the scores on the
development split, by which a learning rate is chosen, and on the test set.
"""
import argparse, json, os, random, time

import numpy
import torch
import torch.nn.functional as F
from transformers import (AutoTokenizer, ElectraConfig, ElectraForSequenceClassification,
                          ElectraForTokenClassification)
from transformers.utils import logging

from tasks import TASKS

logging.set_verbosity_error()
logging.disable_progress_bar()

def load(model, config, task):
    """A classifier on the encoder of a directory, or on random weights."""
    kind = ElectraForTokenClassification if task.per_word else ElectraForSequenceClassification
    if config:
        made = ElectraConfig.from_json_file(config)
        made.num_labels = len(task.labels)
        return kind(made)
    made, info = kind.from_pretrained(model, num_labels=len(task.labels), output_loading_info=True,
                                      dtype=torch.float32)
    # The new head alone is random; anything else would be random weights under another name.
    missing = [key for key in info["missing_keys"] if not key.startswith("classifier.")]
    if missing or info["mismatched_keys"]:
        raise SystemExit(f"error: {model} lacks weights of the encoder: {missing[:5]} "
                         f"{list(info['mismatched_keys'])[:5]}")
    return made

def encode(tokenizer, examples, per_word, longest):
    """(ids, label or labels per token, token of each word) per example."""
    texts = [e.words if per_word else " ".join(e.words) for e in examples]
    batch = tokenizer(texts, is_split_into_words=per_word, truncation=True, max_length=longest)
    encoded = []
    for i, example in enumerate(examples):
        ids = batch["input_ids"][i]
        if not per_word:
            encoded.append((ids, example.label, None))
            continue
        first = {}
        for at, word in enumerate(batch.word_ids(i)):
            if word is not None:
                first.setdefault(word, at)
        labels = [-100] * len(ids)
        for word, at in first.items():
            labels[at] = example.label[word]
        encoded.append((ids, labels, first))
    return encoded

def batches(encoded, size, rng=None):
    """Numbers of examples of similar length together; the batches in random order with `rng`."""
    order = list(range(len(encoded)))
    if rng:
        rng.shuffle(order)
    # Sorting pieces of fifty batches keeps neighbours random and padding small.
    piece = 50 * size if rng else len(order)
    pieces = [sorted(order[i : i + piece], key=lambda n: len(encoded[n][0]))
              for i in range(0, len(order), piece)]
    cut = [part[i : i + size] for part in pieces for i in range(0, len(part), size)]
    if rng:
        rng.shuffle(cut)
    return cut

def tensors(encoded, numbers, pad, per_word, device):
    longest = max(len(encoded[n][0]) for n in numbers)
    ids = torch.full((len(numbers), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100) if per_word else torch.tensor([encoded[n][1] for n in numbers])
    for row, n in enumerate(numbers):
        length = len(encoded[n][0])
        ids[row, :length] = torch.tensor(encoded[n][0])
        mask[row, :length] = 1
        if per_word:
            labels[row, :length] = torch.tensor(encoded[n][1])
    return ids.to(device), mask.to(device), labels.to(device)

@torch.no_grad()
def predict(model, encoded, examples, pad, per_word, device):
    model.eval()
    predicted = [None] * len(encoded)
    for numbers in batches(encoded, 128):
        ids, mask, _ = tensors(encoded, numbers, pad, per_word, device)
        best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).tolist()
        for row, n in enumerate(numbers):
            if per_word:
                # Words that were cut off, or that have no token, are outside any entity (label 0).
                first = encoded[n][2]
                predicted[n] = [best[row][first[w]] if w in first else 0
                                for w in range(len(examples[n].words))]
            else:
                predicted[n] = best[row]
    model.train()
    return predicted

def finetune(task, model, config, tokenizer, rate, seed, epochs, batch, longest, device, limit=None):
    start = time.time()
    torch.manual_seed(seed); numpy.random.seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    network = load(model, config, task).to(device).train()
    assert network.config.vocab_size == len(tokenizer), \
        f"{network.config.vocab_size} embeddings for {len(tokenizer)} tokens"
    cut = (lambda part: part[:: max(1, len(part) // limit)]) if limit else (lambda part: part)
    parts = dict(train=cut(task.train), dev=cut(task.dev), test=cut(task.test))
    encoded = {name: encode(tokenizer, part, task.per_word, longest) for name, part in parts.items()}
    pad = tokenizer.pad_token_id

    decay = [p for name, p in network.named_parameters() if p.ndim > 1]
    plain = [p for name, p in network.named_parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=0.01),
                                   dict(params=plain, weight_decay=0.0)], lr=rate)
    steps = epochs * len(batches(encoded["train"], batch, random.Random(0)))
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warmup, (steps - t) / max(1, steps - warmup)))
    losses = []
    for _ in range(epochs):
        total = 0.0
        cuts = batches(encoded["train"], batch, rng)
        for numbers in cuts:
            ids, mask, labels = tensors(encoded["train"], numbers, pad, task.per_word, device)
            logits = network(input_ids=ids, attention_mask=mask).logits
            loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(round(total / len(cuts), 4))
    scores = {name: round(task.score(parts[name], predict(network, encoded[name], parts[name], pad,
                                                          task.per_word, device)), 3)
              for name in ("dev", "test")}
    return dict(task=task.name, metric=task.metric, model=model or config, learning_rate=rate,
                seed=seed, epochs=epochs, batch=batch, examples=len(parts["train"]), steps=steps,
                train_loss=losses, **scores, seconds=round(time.time() - start, 1))

def main():
    parser = argparse.ArgumentParser()
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--model", help="directory of a model of the ELECTRA family")
    group.add_argument("--config", help="config.json: random weights")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--tasks", required=True, help="directory with the tasks' data")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="[default: the task's]")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--longest", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--limit", type=int, help="examples per split, for rehearsals")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    task = TASKS[args.task](args.tasks)
    record = finetune(task, args.model, args.config, args.tokenizer, args.learning_rate, args.seed,
                      args.epochs or task.epochs, args.batch, args.longest, args.device, args.limit)
    with open(args.out + ".tmp", "w") as f:
        json.dump(record, f)
    os.replace(args.out + ".tmp", args.out)
    print(json.dumps(record))

if __name__ == "__main__":
    main()
