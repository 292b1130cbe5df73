"""What a study found, as results.md, finetuning.svg, curves.svg and results.json."""
import json, os, statistics

import svg

# Loss at the positions that show [MASK], and AUC without special tokens.
LOSS_KEY, AUC_KEY = "gen_mask_loss", "disc_auc"

def last_tokens(path):
    """Tokens trained on, by a run's metrics.jsonl."""
    lines = [json.loads(line) for line in open(path)]
    return max((line["tokens"] for line in lines if "tokens" in line), default=None)

def number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"

def spread(values, digits=1):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"

def table(heads, rows):
    aligned = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, aligned, *rows)) + "\n"

def judged(figures):
    g, d = figures.get("generator"), figures.get("discriminator")
    m = d and d["maskable"]
    at = g and g["masked"]
    return [number(at and at["loss"]), number(at and at["accuracy"]), number(m and m["auc"]),
            number(d and d["all"]["auc"]), number(m and m["precision"]), number(m and m["recall"]),
            number(m and m["logit_std"]),
            number(figures["effective_rank"]["value"], 1)]

JUDGED = ["loss at [MASK]", "accuracy at [MASK]", "AUC", "AUC with special tokens", "precision",
          "recall", "std of logits", "effective rank"]

def by_word_frequencies(figures):
    chance = figures.get("word_frequencies")
    if not chance:
        return []
    return [["word frequencies alone", number(chance["loss"]), number(chance["accuracy"]), "0.500",
             *["–"] * 5]]

def log_curve(path, key):
    lines = [json.loads(line) for line in open(path)]
    return [(line["tokens"], line[key]) for line in lines if "tokens" in line and key in line]

def smoothed(points, span):
    """Running means over `span` lines of a log."""
    out = []
    for i in range(len(points)):
        part = points[max(0, i - span + 1) : i + 1]
        out.append((points[i][0], statistics.fmean(y for _, y in part)))
    return out

def write_tables(args, stages, chosen, names):
    pieces = [""]
    record = lambda stage: stages.record(stage)
    seeds = range(1, args.pretrain_seeds + 1)
    trained = [which for which in args.contenders if which != "random"]
    amount = f"{args.minutes:g} minutes" if args.minutes else f"{args.tokens / 1e6:g} M tokens"
    pieces[0] = f"# Quality after {amount}\n"
    pieces.append(f"`{args.preset}`, {amount} of pre-training in rows of {args.seq}, "
                  f"{args.batch} rows per step, learning rate {args.learning_rate:g}. Flags of single "
                  "contenders: " + ("; ".join(f"{n} `{getattr(args, n + '_args')}`" for n in
                                    ("rtd", "mlm", "torch") if getattr(args, n + "_args")) or "none")
                  + ".\n")
    if args.quick:
        pieces.append("**A rehearsal (`--quick`): the figures mean nothing.**\n")

    rows = []
    for which in trained:
        for seed in seeds:
            if made := record(f"pretrain:{which}-{seed}"):
                tokens, seconds = made["tokens"] or 0, made["seconds"]
                speed = f"{tokens / seconds:,.0f}" if seconds and which != "init" else "–"
                rows.append([f"{names[which]}, seed {seed}", f"{tokens:,}", f"{seconds:,.0f}", speed])
    if rows:
        pieces += ["## Pre-training\n", table(["", "tokens", "seconds", "tokens/s"], rows)]

    rows, chance = [], []
    for which in trained:
        for seed in seeds:
            if made := record(f"judge:{which}-{seed}"):
                rows.append([f"{names[which]}, seed {seed}", *judged(made["figures"])])
                chance = chance or by_word_frequencies(made["figures"])
    if rows:
        pieces += ["## Judged on held-out text\n", table(["", *JUDGED], chance + rows)]

    if chosen:
        tasks = [task for task in args.task if any(c["task"] == task for c in chosen)]
        of = {(c["task"], c["contender"]): c for c in chosen}
        rows = []
        for which in args.contenders:
            cells = []
            for task in tasks:
                c, base = of.get((task, which)), of.get((task, "random"))
                if not c:
                    cells += ["–", "–", "–"]
                    continue
                gain = statistics.fmean(c["test"]) - statistics.fmean(base["test"]) if base else None
                cells += [spread(c["test"]), "–" if gain is None or which == "random" else f"{gain:+.1f}",
                          f"{c['learning_rate']:g}"]
            rows.append([names[which], *cells])
        metric = {c["task"]: c["metric"] for c in chosen}
        heads = [""]
        for task in tasks:
            heads += [f"{task}, {metric[task]}, %", "over random weights", "learning rate"]
        count = len(chosen[0]["test"])
        pieces += ["## Fine-tuned\n", f"Test sets; mean and standard deviation over {count} seeds. The "
                   "learning rate was chosen on the development split.\n", table(heads, rows)]
        rates = [f"{rate:g}" for rate in args.learning_rates]
        rows = [[f"{c['task']}, {names[c['contender']]}", *(number(c["grid"].get(r), 1) for r in rates)]
                for c in chosen]
        pieces += [f"Development scores by learning rate (means over {args.grid_seeds} seed(s)):\n",
                   table(["", *rates], rows)]
        groups = [(f"{task}: {metric[task]} on the test set, %", [
            (names[c], statistics.fmean(of[task, c]["test"]),
             statistics.stdev(of[task, c]["test"]) if count > 1 else 0.0, i)
            for i, c in enumerate(args.contenders) if (task, c) in of]) for task in tasks]
        with open(os.path.join(args.out, "finetuning.svg"), "w") as f:
            f.write(svg.bars(groups, f"Fine-tuned after {amount} of pre-training"))
        pieces.append("![fine-tuned scores](finetuning.svg)\n")

    rows, chance = [], []
    for which in ("mlm", "rtd"):
        for name, words in (("before", "before"), ("continued", "continued"),
                            ("scratch", "only on this text, from random weights")):
            if made := record(f"domain-judge:{which}-{name}"):
                rows.append([f"{names[which]}, {words}", *judged(made["figures"])])
                chance = chance or by_word_frequencies(made["figures"])
    if rows:
        pieces += ["## Continued on other text\n", f"{args.domain_tokens / 1e6:g} M tokens more, learning "
                   f"rate {args.domain_rate:g}; judged on held-out text of that domain.\n",
                   table(["", *JUDGED], chance + rows)]

    losses, areas, labels = {}, {}, {}
    for i, which in enumerate(args.contenders):
        path = os.path.join(args.out, "pretrain", f"{which}-1", "metrics.jsonl")
        if which in ("random", "init") or not record(f"pretrain:{which}-1"):
            continue
        labels[i] = names[which]
        losses[i], areas[i] = (log_curve(path, key) for key in (LOSS_KEY, AUC_KEY))
        span = max(1, len(losses[i]) // 40)
        losses[i], areas[i] = smoothed(losses[i], span), smoothed(areas[i], span)
    if labels:
        levels = []
        for which in trained:
            made = record(f"judge:{which}-1")
            if made and made["figures"].get("word_frequencies"):
                levels = [(made["figures"]["word_frequencies"]["loss"], "word frequencies alone (held out)")]
        panels = [("loss at [MASK] (training)", losses, levels),
                  ("AUC of the discriminator, special tokens left out (training)", {i: a for i, a in areas.items() if a},
                   [(0.5, "chance")])]
        with open(os.path.join(args.out, "curves.svg"), "w") as f:
            f.write(svg.curves(panels, "Pre-training by tokens, seed 1", labels))
        pieces.append("![curves of pre-training](curves.svg)\n")

    expected = [f"finetune:{t}:{c}" for t in args.task for c in args.contenders
                if not any(x["task"] == t and x["contender"] == c for x in chosen)]
    if expected or stages.failed:
        pieces.append("Not (yet) in the tables: " + ", ".join(expected + stages.failed) + ".\n")
    with open(os.path.join(args.out, "results.md"), "w") as f:
        f.write("\n".join(pieces))
    with open(os.path.join(args.out, "results.json"), "w") as f:
        json.dump(dict(finetuned=chosen, stages=[stages.record(s) for s in dict.fromkeys(stages.seen)
                                                 if stages.record(s)]), f, indent=1)
    print(f"written: {os.path.join(args.out, 'results.md')}")
