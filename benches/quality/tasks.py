"""The downstream tasks: their files, their labels, and the scores of predictions.

    python tasks.py            # checks the entity F1 against cases that were worked out by hand

banking77 (intent of a question, 77 classes, accuracy): a directory with train.csv and test.csv. A
tenth of train.csv, equally of every class, is the development split.

wnut17 (named entities, six kinds, F1 of exact spans): wnut17train.conll, emerging.dev.conll (the
development split of the task) and emerging.test.annotated.
"""
import csv, os, random

class Example:
    """The words of a text, and one label, or one label per word."""

    def __init__(self, words, label):
        self.words, self.label = words, label

class Task:
    def __init__(self, name, metric, labels, train, dev, test, epochs):
        self.name, self.metric, self.labels, self.epochs = name, metric, labels, epochs
        self.train, self.dev, self.test = train, dev, test
        self.per_word = name == "wnut17"

    def score(self, examples, predicted):
        """The task's metric, in percent, of label numbers per example, or per word of each."""
        if not self.per_word:
            right = sum(p == e.label for e, p in zip(examples, predicted, strict=True))
            return 100 * right / len(examples)
        names = lambda numbers: [self.labels[n] for n in numbers]
        return 100 * entity_f1([names(e.label) for e in examples], [names(p) for p in predicted])

def spans(tags):
    """Entities of a BIO sequence as (kind, first, end), as conlleval and seqeval read them.

    An entity begins at B-kind, and at I-kind after anything but B-kind or I-kind of the same kind;
    it ends before O, before any B-, and before an I- of another kind.
    """
    found, kind, first = [], None, 0
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind is not None and (mark != "I" or name != kind):
            found.append((kind, first, i))
            kind = None
        if mark == "B" or (mark == "I" and kind is None):
            kind, first = name, i
    return found

def entity_f1(gold, predicted):
    """Micro-averaged F1 of entities whose kind and both ends agree."""
    right = wanted = given = 0
    for g, p in zip(gold, predicted, strict=True):
        assert len(g) == len(p), "a prediction for every word"
        g, p = set(spans(g)), set(spans(p))
        right, wanted, given = right + len(g & p), wanted + len(g), given + len(p)
    return 2 * right / (wanted + given) if right else 0.0

def banking77(folder):
    def read(name):
        with open(os.path.join(folder, "banking77", name), encoding="utf-8", newline="") as f:
            return [(row["text"], row["category"]) for row in csv.DictReader(f)]
    rows, test = read("train.csv"), read("test.csv")
    labels = sorted({label for _, label in rows})
    number = {label: i for i, label in enumerate(labels)}
    by_label = [[] for _ in labels]
    for text, label in rows:
        by_label[number[label]].append(Example(text.split(), number[label]))
    train, dev = [], []
    for examples in by_label:
        random.Random(77).shuffle(examples)
        count = max(1, round(len(examples) / 10))
        dev += examples[:count]
        train += examples[count:]
    test = [Example(text.split(), number[label]) for text, label in test]
    return Task("banking77", "accuracy", labels, train, dev, test, epochs=8)

def wnut17(folder):
    def read(name):
        sentences, words, tags = [], [], []
        with open(os.path.join(folder, "wnut17", name), encoding="utf-8") as f:
            for line in [*f.read().split("\n"), ""]:
                word, _, tag = line.rstrip("\r").partition("\t")
                if tag.strip():
                    # Words of white space alone occur; they keep their place.
                    words.append(word.strip() or "\ufffd")
                    tags.append(tag.strip())
                elif words and not line.strip():
                    sentences.append((words, tags))
                    words, tags = [], []
                elif line.strip():
                    raise ValueError(f"{name}: a line without a tag: {line!r}")
        return sentences
    parts = [read(n) for n in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")]
    kinds = sorted({tag[2:] for part in parts for _, tags in part for tag in tags if tag != "O"})
    labels = ["O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI")]
    number = {label: i for i, label in enumerate(labels)}
    train, dev, test = ([Example(words, [number[t] for t in tags]) for words, tags in part]
                        for part in parts)
    return Task("wnut17", "entity F1", labels, train, dev, test, epochs=10)

TASKS = {"banking77": banking77, "wnut17": wnut17}

def check_self():
    cases = [
        (["O", "B-a", "I-a", "O", "B-b"], [("a", 1, 3), ("b", 4, 5)]),
        (["B-a", "B-a", "I-a"], [("a", 0, 1), ("a", 1, 3)]),
        (["I-a", "I-a", "I-b", "O", "I-a"], [("a", 0, 2), ("b", 2, 3), ("a", 4, 5)]),
        (["B-a", "I-b", "I-b"], [("a", 0, 1), ("b", 1, 3)]),
        (["B-creative-work", "I-creative-work"], [("creative-work", 0, 2)]),
        ([], []), (["O"], []),
    ]
    for tags, wanted in cases:
        assert spans(tags) == wanted, (tags, spans(tags), wanted)
    # Of two entities one is found, one of the two predictions is right: F1 = 2 · 1 / (2 + 2).
    gold, predicted = [["B-a", "I-a", "O", "B-b"]], [["B-a", "I-a", "O", "B-a"]]
    assert entity_f1(gold, predicted) == 0.5
    # A span that is one word too short counts as wrong twice.
    assert entity_f1([["B-a", "I-a"]], [["B-a", "O"]]) == 0.0
    assert entity_f1(gold, gold) == 1.0 and entity_f1(gold, [["O"] * 4]) == 0.0
    # Two of three gold entities, two of four predictions: 2 · 2 / (3 + 4).
    assert abs(entity_f1([["B-a", "B-b", "O", "B-a", "O"]], [["B-a", "B-b", "B-b", "O", "B-a"]])
               - 4 / 7) < 1e-12
    print("the entity F1 agrees with the cases worked out by hand")

if __name__ == "__main__":
    check_self()
