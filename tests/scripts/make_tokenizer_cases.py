#!/usr/bin/env python3
"""Writes the expected ids of the tokenizer tests, by transformers' AutoTokenizer (version 5).

    pip install transformers sentencepiece
    python make_tokenizer_cases.py ../data/wordpiece-8k.txt ../data/sherlock-holmes.txt ../fixtures

tokenizer_cases.json: awkward lines and their ids by BertTokenizer.
tokenizer_directories.json: small tokenizers with all kinds of settings files, and the ids of a few
lines.
"""
import copy, json, os, shutil, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers)
from transformers import AutoTokenizer

wordpiece_8k, book, fixtures = sys.argv[1:]

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
    shutil.copy(wordpiece_8k, os.path.join(tmp, "vocab.txt"))
    json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": True}, open(os.path.join(tmp, "tokenizer_config.json"), "w"))
    tokenizer = AutoTokenizer.from_pretrained(tmp)
    assert len(tokenizer) > 1000, "this is not the vocabulary"
    cases = [{"text": line, "ids": tokenizer(line, add_special_tokens=False)["input_ids"]} for line in LINES]
with open(os.path.join(fixtures, "tokenizer_cases.json"), "w") as f:
    json.dump(cases, f, ensure_ascii=True, indent=1)
    f.write("\n")

# Small tokenizers.

TEXT = [line.strip() for line in open(book, encoding="utf-8") if line.strip()][:400]
MORE = ["naïve CAFÉ ünï", "中文字", "में कुछ", "かぎ パンダ", "Ｆｕｌｌ ﬁne №5", "@user <ent> 3.14"] * 40
BERT_NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SHORT = [
    "The man said: \"Don't go, naïve CAFÉ!\" [MASK] [CLS]",
    "Ｆｕｌｌ ﬁne №5 中文字 में かぎ पान extraordinary",
    " two  spaces @user the@users <ent>thing <entity> @USER ",
    "tabs\tand\u00a0nbsp control\u0001 \u200b 3.14 a <mask> b <s>",
    "",
]

def train(model, trainer, normalizer=None, pre=None, decoder=None, frame=None, names=BERT_NAMES, **more):
    tokenizer = Tokenizer(model)
    if normalizer: tokenizer.normalizer = normalizer
    if pre: tokenizer.pre_tokenizer = pre
    if decoder: tokenizer.decoder = decoder
    tokenizer.train_from_iterator(TEXT + MORE, trainer(vocab_size=more.pop("size", 260), special_tokens=names, show_progress=False, **more))
    cls, sep = ("[CLS]", "[SEP]") if "[CLS]" in names else ("<s>", "</s>")
    if frame == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in (cls, sep)])
    if frame == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing((sep, tokenizer.token_to_id(sep)), (cls, tokenizer.token_to_id(cls)), add_prefix_space=False)
    return json.loads(tokenizer.to_str())

def wordpiece(normalizer, pre, prefix="##", limit=100, **more):
    trained = train(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=prefix, max_input_chars_per_word=limit), trainers.WordPieceTrainer,
                    normalizer, pre, decoders.WordPiece(prefix), "bert", continuing_subword_prefix=prefix, **more)
    trained["model"]["continuing_subword_prefix"], trained["model"]["max_input_chars_per_word"] = prefix, limit
    return trained

def bert_normalizer(**more):
    return normalizers.BertNormalizer(**more)

def bpe(pre, decoder, frame=None, names=ROBERTA_NAMES, normalizer=None, unk=None, size=340, **more):
    end = {"end_of_word_suffix": more["end_of_word_suffix"]} if "end_of_word_suffix" in more else {}
    return train(models.BPE(unk_token=unk, **end), trainers.BpeTrainer, normalizer, pre, decoder, frame, names, size=size, **more)

def with_tokens(definition, tokens):
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_tokens(tokens)
    return json.loads(tokenizer.to_str())

BERT = wordpiece(bert_normalizer(), pre_tokenizers.BertPreTokenizer())
BYTES = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), "roberta", initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
BYTES_PREFIX = copy.deepcopy(BYTES)
BYTES_PREFIX["pre_tokenizer"]["add_prefix_space"] = True
BYTES_PREFIX["post_processor"] = None
UNIGRAM = train(models.Unigram(), trainers.UnigramTrainer, normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
                pre_tokenizers.Metaspace(), decoders.Metaspace(), "bert", size=220, unk_token="[UNK]")
XLMR_NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
XLMR = train(models.Unigram(), trainers.UnigramTrainer, None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
             decoders.Metaspace(), "bert", XLMR_NAMES, size=220, unk_token="<unk>")
WORDS = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
ALBERT = train(models.Unigram(), trainers.UnigramTrainer, normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
               normalizers.StripAccents(), normalizers.Lowercase()]), WORDS, decoders.Metaspace(), "bert", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], size=180, unk_token="<unk>")
DEBERTA_V2 = train(models.Unigram(), trainers.UnigramTrainer, normalizers.Sequence([normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(),
                   normalizers.Strip(left=False, right=True)]), pre_tokenizers.Sequence([pre_tokenizers.Metaspace()]), decoders.Metaspace(), "bert",
                   ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], size=220, unk_token="[UNK]")
DEBERTA = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), "bert", BERT_NAMES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
FLAGS = [AddedToken("@user", single_word=True), AddedToken("<ent>", lstrip=True, rstrip=True), AddedToken("CAFÉ", normalized=True),
         AddedToken("Don't", normalized=False), AddedToken("two  spaces", normalized=False), AddedToken("[X]", special=True)]
VOCAB = sorted(BERT["model"]["vocab"], key=BERT["model"]["vocab"].get)
FAST, BERT_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "BertTokenizer"}
NAMES = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], BERT_NAMES))
RNAMES = dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")

def lines(tokens, end="\n"):
    return end.join(tokens) + end

def renamed(names):
    return [dict(zip(BERT_NAMES, names)).get(token, token) for token in VOCAB]

VOCAB_JSON = json.dumps(BYTES["model"]["vocab"], ensure_ascii=False)
MERGES = "#version: 0.2\n" + lines(" ".join(pair) for pair in BYTES["model"]["merges"])
OTHER = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
PLAIN = dict(lstrip=False, rstrip=False, normalized=True, single_word=False, special=False)

# Name, files.
CASES = {
    "bert": {"tokenizer.json": BERT, "tokenizer_config.json": BERT_CLASS},
    "electra-fast": {"tokenizer.json": BERT, "tokenizer_config.json": {"tokenizer_class": "ElectraTokenizerFast", **NAMES}},
    "lower-false": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "do_lower_case": False}},
    "accents-false": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "strip_accents": False}},
    "accents-true-cased": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "do_lower_case": False, "strip_accents": True}},
    "chinese-false": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "tokenize_chinese_chars": False}},
    "lower-false-fast": {"tokenizer.json": BERT, "tokenizer_config.json": {**FAST, "do_lower_case": False}},
    "class-of-model": {"tokenizer.json": BERT, "tokenizer_config.json": {"do_lower_case": False}, "config.json": {"model_type": "electra"}},
    "no-settings": {"tokenizer.json": BERT},
    "added-json": {"vocab.txt": lines(VOCAB), "tokenizer_config.json": BERT_CLASS, "added_tokens.json": {"@user": len(VOCAB), "<ent>": len(VOCAB) + 1}},
    "added-json-special": {"vocab.txt": lines(VOCAB), "tokenizer_config.json": {**BERT_CLASS, "additional_special_tokens": ["@user"]}, "added_tokens.json": {"@user": len(VOCAB)}},
    "added-decoder": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "added_tokens_decoder": {str(len(VOCAB)): {"content": "@user", **PLAIN}}}},
    "added-decoder-vocab": {"vocab.txt": lines(VOCAB), "tokenizer_config.json": {**BERT_CLASS, "added_tokens_decoder": {str(len(VOCAB)): {"content": "<ent>", **PLAIN, "lstrip": True}}}},
    "additional-special": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "additional_special_tokens": ["@user", "<ent>"]}},
    "extra-special": {"tokenizer.json": BERT, "tokenizer_config.json": {**FAST, **NAMES, "extra_special_tokens": ["@user"]}},
    "extra-special-named": {"tokenizer.json": BERT, "tokenizer_config.json": {**FAST, **NAMES, "extra_special_tokens": {"user_token": "@user"}}},
    "map": {"tokenizer.json": BERT, "tokenizer_config.json": BERT_CLASS,
            "special_tokens_map.json": {"mask_token": {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}, "additional_special_tokens": ["@user"]}},
    "mask-lstrip": {"vocab.txt": lines(VOCAB), "tokenizer_config.json": {**BERT_CLASS, "mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}}},
    "split-special": {"tokenizer.json": BERT, "tokenizer_config.json": {**BERT_CLASS, "split_special_tokens": True}},
    "all-flags": {"tokenizer.json": with_tokens(BERT, FLAGS), "tokenizer_config.json": {**FAST, **NAMES}},
    "all-flags-bert": {"tokenizer.json": with_tokens(BERT, FLAGS), "tokenizer_config.json": BERT_CLASS},
    "other-names": {"vocab.txt": lines(renamed(OTHER)), "tokenizer_config.json": {**BERT_CLASS, **RNAMES}},
    "other-names-map": {"vocab.txt": lines(renamed(OTHER)), "tokenizer_config.json": BERT_CLASS, "special_tokens_map.json": RNAMES},
    "blank": {"vocab.txt": lines(VOCAB[:100] + [""] + VOCAB[100:] + ["", ""]), "tokenizer_config.json": BERT_CLASS},
    "twice": {"vocab.txt": lines(VOCAB + ["the", "man"]), "tokenizer_config.json": BERT_CLASS},
    "spaces": {"vocab.txt": lines([token + " \u3000" if i > 100 else token for i, token in enumerate(VOCAB)]), "tokenizer_config.json": BERT_CLASS},
    "crlf": {"vocab.txt": lines(VOCAB, "\r\n"), "tokenizer_config.json": BERT_CLASS},
    "bom": {"vocab.txt": "\ufeff" + lines(VOCAB), "tokenizer_config.json": BERT_CLASS},
    "no-last-line-end": {"vocab.txt": lines(VOCAB).rstrip("\n"), "tokenizer_config.json": BERT_CLASS},
    "truncation": {"tokenizer.json": {**BERT, "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
                   "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}}, "tokenizer_config.json": BERT_CLASS},
    "limit-8": {"tokenizer.json": wordpiece(bert_normalizer(), pre_tokenizers.BertPreTokenizer(), limit=8), "tokenizer_config.json": {**FAST, **NAMES}},
    "prefix": {"tokenizer.json": wordpiece(bert_normalizer(), pre_tokenizers.BertPreTokenizer(), "@@"), "tokenizer_config.json": {**FAST, **NAMES}},
    "not-cleaned": {"tokenizer.json": wordpiece(bert_normalizer(clean_text=False), pre_tokenizers.BertPreTokenizer()), "tokenizer_config.json": {**FAST, **NAMES}},
    "whitespace-split": {"tokenizer.json": wordpiece(normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()), "tokenizer_config.json": {**FAST, **NAMES}},
    "metaspace-wordpiece": {"tokenizer.json": wordpiece(normalizers.NFKC(), pre_tokenizers.Metaspace()), "tokenizer_config.json": {**FAST, **NAMES}},
    "digits": {"tokenizer.json": wordpiece(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
               pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])), "tokenizer_config.json": {**FAST, **NAMES}},
    "unigram": {"tokenizer.json": UNIGRAM, "tokenizer_config.json": {**FAST, **NAMES}},
    "xlm-roberta": {"tokenizer.json": XLMR, "tokenizer_config.json": {"tokenizer_class": "XLMRobertaTokenizerFast"}},
    "albert": {"tokenizer.json": ALBERT, "tokenizer_config.json": {"tokenizer_class": "AlbertTokenizer"}},
    "deberta": {"tokenizer.json": DEBERTA, "tokenizer_config.json": {"tokenizer_class": "DebertaTokenizer"}},
    "deberta-v2": {"tokenizer.json": DEBERTA_V2, "tokenizer_config.json": {"tokenizer_class": "DebertaV2TokenizerFast"}},
    "char-bpe": {"tokenizer.json": bpe(pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder(), None, ROBERTA_NAMES, normalizers.BertNormalizer(lowercase=False), "<unk>", end_of_word_suffix="</w>"),
                 "tokenizer_config.json": {**FAST, **RNAMES}},
    "bytes-without-frame": {"tokenizer.json": BYTES_PREFIX, "tokenizer_config.json": {**FAST, **RNAMES}},
    "bytes-roberta": {"tokenizer.json": BYTES, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizerFast"}},
    "bytes-roberta-prefix": {"tokenizer.json": BYTES, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}},
    "merges-roberta": {"vocab.json": VOCAB_JSON, "merges.txt": MERGES, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}},
    "merges-roberta-prefix": {"vocab.json": VOCAB_JSON, "merges.txt": MERGES, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}},
    "merges-gpt2": {"vocab.json": VOCAB_JSON, "merges.txt": MERGES, "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **RNAMES, "bos_token": "<s>", "eos_token": "</s>"}},
    "merges-added": {"vocab.json": VOCAB_JSON, "merges.txt": MERGES, "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}, "added_tokens.json": {"@user": len(BYTES["model"]["vocab"])}},
}

def write(dir, files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        open(os.path.join(dir, name), "w", encoding="utf-8", newline="").write(text)

contents, cases = [], []
for name, files in CASES.items():
    with tempfile.TemporaryDirectory() as tmp:
        write(tmp, files)
        tokenizer = AutoTokenizer.from_pretrained(tmp)
        more = tokenizer(SHORT, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        numbers = {}
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            numbers[file] = contents.index(text) if text in contents else len(contents)
            if text not in contents: contents.append(text)
        cases.append({"name": name, "files": numbers, "size": max(tokenizer.get_vocab().values()) + 1, "ids": more})
with open(os.path.join(fixtures, "tokenizer_directories.json"), "w", encoding="utf-8") as f:
    row = lambda value: json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    f.write('{"lines":%s,\n"contents":[\n%s\n],\n"cases":[\n%s\n]}\n' % (row(SHORT), ",\n".join(map(row, contents)), ",\n".join(map(row, cases))))
