"""Makes tests/fixtures/vocabulary: small texts without spaces or with many marks, and the
vocabularies that the Python library `tokenizers` (0.23.3) learns from them.

    python3 make_vocabulary_fixtures.py
"""
import json, os, random
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

os.environ["TOKENIZERS_PARALLELISM"] = "false"
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "vocabulary")
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
random.seed(17)


def lines(words, count, length, separator=""):
    return [separator.join(random.choices(words, k=length)) for _ in range(count)]


def proteins():
    motifs = "MKT AYIAK QRQISFV KSHFSRQ LEER LGLIEVQ APILS RVGDGTQ DNLSG W C HEP".split()
    return lines(motifs, 14, 36)


SMILES = """CC(=O)Oc1ccccc1C(=O)O
CN1C=NC2=C1C(=O)N(C(=O)N2C)C
CC(C)Cc1ccc(cc1)C(C)C(=O)O
CC(=O)Nc1ccc(O)cc1
C[C@@H](N)C(=O)O
O=C(O)Cc1ccccc1Nc1c(Cl)cccc1Cl
CN(C)CCOC(c1ccccc1)c1ccccc1
CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O
Clc1ccc2c(c1)C(c1ccccc1)=NCC(=O)N2C
OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O
c1ccc2[nH]ccc2c1
[Na+].[O-]C(=O)c1ccccc1
FC(F)(F)c1ccc(Br)cc1/C=C/C#N""".splitlines()

TEXTS = {
    "protein": proteins(),
    "smiles": SMILES * 2,
    "thai": lines("ฉัน ไม่ รู้ ว่า เขา อยู่ ที่ บ้าน น้ำ หนัก สินค้า สั่ง ซื้อ แล้ว พรุ่งนี้ เมื่อ วาน เด็ก กิน ข้าว".split(), 8, 14),
    "hindi": lines("अपने पोस्ट ऑफिस में पदों पर भर्ती है कुत्ता कुछ नहीं खाता हिन्दी की किताब पढ़ता हूँ।".split(), 10, 12, " "),
    "japanese": lines("かぎ かき パンダ ハンダ が は を 東京 大学 で 学ぶ 学生 ガラス の うどん どうぞ 。".split(), 10, 16),
}


def pipeline(model, name):
    t = Tokenizer(model)
    if name == "bytes":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return t
    t.normalizer = normalizers.BertNormalizer(True, False, None, False)
    space = pre_tokenizers.Metaspace("▁", "never", False)
    parts = {
        # Long paragraphs are cut for training alone.
        "none": [space, pre_tokenizers.Split(Regex(r"[\s\S]{1,100}"), "isolated")],
        "per-character": [space, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")],
        "whitespace": [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()],
    }[name]
    t.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return t


def bpe(text, name, size):
    t = pipeline(models.BPE(unk_token="[UNK]"), name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if name == "bytes" else []
    t.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=SPECIALS, initial_alphabet=alphabet,
        show_progress=False))
    model = json.loads(t.to_str())["model"]
    return {"vocab": sorted(model["vocab"], key=model["vocab"].get), "merges": model["merges"]}


def unigram(text, name, size):
    t = pipeline(models.Unigram(), name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if name == "bytes" else []
    t.train_from_iterator(text, trainers.UnigramTrainer(
        vocab_size=size, special_tokens=SPECIALS, unk_token="[UNK]", initial_alphabet=alphabet,
        show_progress=False))
    return {"pieces": json.loads(t.to_str())["model"]["vocab"]}


if __name__ == "__main__":
    os.makedirs(HERE, exist_ok=True)
    for name, text in TEXTS.items():
        with open(os.path.join(HERE, name + ".txt"), "w") as f:
            f.write("\n".join(text) + "\n")
    cases = [
        (bpe, "bpe", "protein", "none", 90),
        (bpe, "bpe", "thai", "bytes", 320),
        (bpe, "bpe", "smiles", "per-character", 90),
        (bpe, "bpe", "hindi", "none", 120),
        (unigram, "unigram", "thai", "none", 80),
        (unigram, "unigram", "hindi", "whitespace", 90),
    ]
    out = [
        {"kind": kind, "text": text, "pre-tokenizer": pre, "vocab-size": size,
         **learn(TEXTS[text], pre, size)}
        for learn, kind, text, pre, size in cases
    ]
    with open(os.path.join(HERE, "learned.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in out) + "\n]\n")
