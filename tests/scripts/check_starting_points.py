#!/usr/bin/env python3
"""Trains from every starting point that transformers can save, and checks the resulting models.

    pip install torch transformers safetensors
    python check_starting_points.py --elektron target/release/elektron --text TEXT

For each class of ELECTRA, and for a config.json alone, transformers makes a small random model.
Elektron starts from it, once without changing a weight (the encoder, and the head if it is one that
is trained, must be exactly the same) and once for a few steps. The models that it writes are loaded
with transformers: no key may be missing or unexpected, and the logits of `elektron forward` must be
those of transformers, with a largest difference below 1e-4.
"""
import argparse, json, os, subprocess, tempfile, warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining, ElectraForTokenClassification

transformers.utils.logging.disable_progress_bar()
parser = argparse.ArgumentParser()
parser.add_argument("--elektron", default="target/release/elektron")
parser.add_argument("--text", required=True)
args = parser.parse_args()
LIMIT, LENGTH = 1e-4, 24


def elektron(*arguments):
    done = subprocess.run([args.elektron, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stderr}"
    return done.stderr


def config(vocab_size, **changes):
    sizes = dict(vocab_size=vocab_size, embedding_size=12, hidden_size=20, num_hidden_layers=2, num_attention_heads=2,
                 intermediate_size=28, max_position_embeddings=40)
    return ElectraConfig(**{**sizes, **changes})


def start(name, directory, vocab_size):
    """Saves a starting point; returns the model, or None for a configuration alone."""
    torch.manual_seed(1)
    class_name, _, variant = name.partition(" ")
    changes = {
        "3 labels": dict(num_labels=3), "5 labels": dict(num_labels=5), "relu": dict(hidden_act="relu"),
        "tanh GELU": dict(hidden_act="gelu_new", layer_norm_eps=1e-6), "one token type": dict(type_vocab_size=1),
        "no projection": dict(embedding_size=20), "odd sizes": dict(embedding_size=7, hidden_size=33, num_attention_heads=3,
                                                                     intermediate_size=19, max_position_embeddings=61),
        "untied, no head": dict(tie_word_embeddings=False), "untied, equal head": dict(tie_word_embeddings=False),
        "other ids": dict(pad_token_id=5, bos_token_id=7, eos_token_id=9),
    }.get(variant, {})
    settings = config(vocab_size, **changes)
    if class_name == "config.json":
        settings.save_pretrained(directory)
        return None
    model = getattr(transformers, class_name)(settings)
    with torch.no_grad():  # LayerNorms and biases that are not 1 and 0 show which is which.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if variant.startswith("untied"):
        with torch.no_grad():
            model.generator_lm_head.weight.copy_(model.electra.embeddings.word_embeddings.weight)
    if variant == "sharded":
        model.save_pretrained(directory, max_shard_size="20KB")
    elif variant == "half":
        model.half().save_pretrained(directory)
        model.float()
    else:
        model.save_pretrained(directory)
    if variant == "untied, no head":
        path = os.path.join(directory, "model.safetensors")
        tensors = load_file(path)
        tensors.pop("generator_lm_head.weight", None)
        save_file(tensors, path, metadata={"format": "pt"})
    return model.eval()


def load(cls, directory):
    model, info = cls.from_pretrained(directory, output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, f"{directory}: {problems}"
    return model.eval()


def compare(out, tmp, head):
    """The largest differences between Elektron's logits and those of transformers."""
    generator = load(ElectraForMaskedLM, os.path.join(out, "generator"))
    discriminator = load(head, os.path.join(out, "discriminator"))
    vocab_size = generator.config.vocab_size
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, vocab_size, (3, LENGTH), generator=draw)
    types = torch.zeros_like(ids)
    if generator.config.type_vocab_size > 1:
        types[:, LENGTH // 2:] = 1
    labels = torch.full_like(ids, -100)
    labels[:, 2::5] = ids[:, 2::5]
    where = (labels != -100).flatten().nonzero().flatten()
    sampled = torch.randint(0, vocab_size, where.shape, generator=draw)
    batch, result = os.path.join(tmp, "in.safetensors"), os.path.join(tmp, "out.safetensors")
    save_file(dict(input_ids=ids, labels=labels, token_type_ids=types, sampled_ids=sampled), batch)
    elektron("forward", "--generator", os.path.join(out, "generator"), "--discriminator", os.path.join(out, "discriminator"),
             "--batch", batch, "--output", result, "--share", "none", "--device", "cpu")
    ours = load_file(result)
    with torch.no_grad():
        want = generator(ids, token_type_ids=types).logits.reshape(-1, vocab_size)[where]
        corrupted = ids.flatten().scatter(0, where, sampled).view_as(ids)
        judged = discriminator(corrupted, token_type_ids=types).logits
    gaps = [float((ours[name] - reference).abs().max())
            for name, reference in (("gen_logits", want), ("disc_logits", judged))]
    # Written so that a NaN fails.
    assert all(gap < LIMIT for gap in gaps), (out, gaps)
    return gaps


def same(model, out):
    """Whatever the starting point has in common with a network is the same there, bit for bit."""
    if model is None:
        return 0
    # A checkpoint of an ElectraModel has no prefix.
    have = {name if "electra." in name or hasattr(model, "electra") else f"electra.{name}": tensor
            for name, tensor in model.state_dict().items()}
    count = 0
    for network in ("generator", "discriminator"):
        for name, tensor in load_file(os.path.join(out, network, "model.safetensors")).items():
            if name in have and have[name].shape == tensor.shape:
                assert torch.equal(have[name], tensor), (network, name)
                count += 1
            assert name in have or not name.startswith("electra."), (network, name)
    return count


names = ["ElectraModel", "ElectraModel no projection", "ElectraModel half", "ElectraForMaskedLM", "ElectraForMaskedLM sharded",
         "ElectraForMaskedLM relu", "ElectraForMaskedLM untied, no head", "ElectraForMaskedLM untied, equal head",
         "ElectraForMaskedLM other ids", "ElectraForPreTraining", "ElectraForPreTraining tanh GELU",
         "ElectraForPreTraining one token type", "ElectraForPreTraining odd sizes", "ElectraForSequenceClassification",
         "ElectraForSequenceClassification 3 labels", "ElectraForTokenClassification", "ElectraForTokenClassification 5 labels",
         "ElectraForQuestionAnswering", "ElectraForMultipleChoice", "ElectraForCausalLM", "config.json", "config.json odd sizes",
         "config.json other ids"]
print(f"transformers {transformers.__version__}; the largest difference of logits, generator and discriminator")
worst = 0.0
with tempfile.TemporaryDirectory() as tmp:
    tokenizer = os.path.join(tmp, "tokenizer")
    elektron("tokenizer", "train", "--input", args.text, "--vocab-size", 600, "--output", tokenizer)
    vocab_size = json.load(open(os.path.join(tokenizer, "tokenizer.json")))["model"]["vocab"].__len__()
    for number, name in enumerate(names):
        directory = os.path.join(tmp, f"start{number}")
        model = start(name, directory, vocab_size + 8)
        for head, cls in (("pretraining", ElectraForPreTraining), ("token-classification", ElectraForTokenClassification)):
            common = ["pretrain", "--train", args.text, "--tokenizer", tokenizer, "--base", directory, "--head", head,
                      "--seq-len", LENGTH, "--batch-size", 4, "--merge", "concat", "--share", "none", "--device", "cpu",
                      "--log-to", "jsonl"]
            still, moved = (os.path.join(tmp, f"{kind}{number}{head}") for kind in ("still", "moved"))
            elektron(*common, "--output", still, "--steps", 1, "--learning-rate", 0)
            kept = same(model, still)
            elektron(*common, "--output", moved, "--steps", 4, "--learning-rate", 1e-3, "--warmup-steps", 0)
            pad = json.load(open(os.path.join(moved, "generator", "config.json")))["pad_token_id"]
            assert pad == 0, "the tokenizer's"
            gaps = compare(still, tmp, cls) + compare(moved, tmp, cls)
            worst = max(worst, *gaps)
            print(f"{name:<44} {head:<21} {kept:>3} tensors kept, logits within "
                  f"{max(gaps[0::2]):.1e} and {max(gaps[1::2]):.1e}", flush=True)
print(f"largest difference {worst:.1e}, limit {LIMIT}")
