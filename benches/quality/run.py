#!/usr/bin/env python3
"""Pre-trains contenders on equally many tokens, judges them, fine-tunes each, and tabulates.

    pip install torch transformers tokenizers
    python3 benches/quality/run.py --tasks TASKS --train FILES… --valid FILES… \\
        --elektron target/release/elektron --out OUT --tokens 12e6

Every stage leaves OUT/records/STAGE.json and is passed over when the command is given again;
pre-training goes on from its last checkpoint. README.md in this directory says what each figure is.

Exit codes: 0 finished, 1 a stage failed, 75 stopped by a signal or by --max-minutes: give the
command again.
"""
import argparse, fnmatch, json, os, shlex, shutil, signal, subprocess, sys, time

from tables import last_tokens, write_tables

HERE = os.path.dirname(os.path.abspath(__file__))
PEER = os.path.join(HERE, "..", "peers", "pretrain_torch.py")
CONTENDERS = {
    "random": "random weights",
    "init": "Elektron's weights before the first step",
    "mlm": "masked language model, Elektron",
    "rtd": "replaced token detection, Elektron",
    "torch": "replaced token detection, PyTorch",
}
SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
         "intermediate_size", "max_position_embeddings")

def arguments():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__)
    parser.add_argument("--tasks", required=True, help="directory with banking77/ and wnut17/")
    parser.add_argument("--train", nargs="+", required=True, help="text files, also .gz")
    parser.add_argument("--valid", nargs="+", required=True, help="held-out text files, also .gz")
    parser.add_argument("--elektron", required=True, help="the program")
    parser.add_argument("--out", required=True, help="directory of everything that is made")
    parser.add_argument("--contenders", nargs="+", default=["random", "mlm", "rtd", "torch"],
                        choices=list(CONTENDERS))
    group = parser.add_argument_group("pre-training, for all contenders alike")
    group.add_argument("--tokens", type=float, default=12e6)
    group.add_argument("--minutes", type=float, help="equal time instead of equal tokens: each "
                       "contender gets the tokens that it trains in this time at its --speeds")
    group.add_argument("--speeds", nargs="+", default=[], metavar="NAME=TOKENS_PER_SECOND",
                       help="of mlm, rtd and torch, measured before on this machine")
    group.add_argument("--preset", default="tiny")
    group.add_argument("--tokenizer", help="directory or vocab.txt [default: one is trained]")
    group.add_argument("--vocab-size", type=int, help="of a trained one [default: the preset's]")
    group.add_argument("--seq", type=int, default=64, help="tokens per row")
    group.add_argument("--batch", type=int, default=32, help="rows per step")
    group.add_argument("--learning-rate", type=float, default=2e-3)
    group.add_argument("--recipe", default="short", help="of mlm and rtd")
    group.add_argument("--mlm-first", type=float, default=1.0, metavar="X", help="rtd's first "
                       "stage, in steps per step of the second; both count as its tokens")
    group.add_argument("--warmup-ratio", type=float, default=0.1)
    group.add_argument("--pretrain-seeds", type=int, default=1, metavar="N", help="pre-trainings "
                       "per contender; fine-tuning seed i takes the i-th, counted around")
    for name in ("rtd", "mlm", "torch"):
        group.add_argument(f"--{name}-args", default="", metavar="FLAGS", help=f"flags of {name} "
                           "alone, in one string; they replace those above")
    group = parser.add_argument_group("continuation on other text (of mlm and rtd)")
    group.add_argument("--continue", nargs="+", dest="domain", default=[], metavar="FILE")
    group.add_argument("--continue-valid", nargs="+", dest="domain_valid", default=[], metavar="FILE")
    group.add_argument("--continue-tokens", type=float, help="[default: a quarter of --tokens]")
    group.add_argument("--continue-learning-rate", type=float, help="[default: half of the above]")
    group = parser.add_argument_group("fine-tuning, for all contenders alike")
    group.add_argument("--task", nargs="+", default=["banking77", "wnut17"])
    group.add_argument("--seeds", type=int, default=3)
    group.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 5e-4, 1e-3])
    group.add_argument("--grid-seeds", type=int, default=1, help="seeds over whose development "
                       "scores the learning rate is chosen")
    group.add_argument("--epochs", type=int, help="[default: 8 for banking77, 10 for wnut17]")
    group.add_argument("--limit", type=int, help="examples per split, for rehearsals")
    group = parser.add_argument_group("how to run")
    group.add_argument("--quick", action="store_true", help="a rehearsal of minutes: 100,000 tokens, "
                       "short rows, a small vocabulary, few examples, one epoch, two seeds")
    group.add_argument("--only", nargs="+", metavar="STAGE", help="stages to run, with * and ?")
    group.add_argument("--list", action="store_true", help="name the stages and what is done")
    group.add_argument("--max-minutes", type=float, help="stop after this time, to be continued")
    group.add_argument("--keep-going", action="store_true", help="go on after a failed stage")
    group.add_argument("--threads", type=int, help="[default: all cores]")
    group.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    group.add_argument("--judge-rows", type=int, default=400)
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.seq, args.vocab_size = min(args.tokens, 1e5), min(args.seq, 32), 1000
        args.limit, args.epochs, args.seeds = args.limit or 300, 1, min(args.seeds, 2)
        args.learning_rates, args.judge_rows = args.learning_rates[-2:], 100
    args.budgets = {name: args.tokens for name in CONTENDERS}
    if args.minutes or args.speeds:
        speeds = dict(pair.partition("=")[::2] for pair in args.speeds)
        missing = [c for c in args.contenders if c not in ("random", "init") and not speeds.get(c)]
        if not args.minutes or missing or not set(speeds) <= set(CONTENDERS):
            parser.error("--minutes and --speeds belong together, with a speed of every contender: "
                         "--minutes 8 --speeds mlm=2.5e6 rtd=1.9e6 torch=1.67e6")
        args.budgets |= {name: float(speed) * 60 * args.minutes for name, speed in speeds.items()}
    if bool(args.domain) != bool(args.domain_valid):
        parser.error("--continue and --continue-valid belong together")
    for path in [*args.train, *args.valid, *args.domain, *args.domain_valid, args.tasks]:
        if not os.path.exists(path):
            parser.error(f"{path} does not exist")
    for name in ("train", "valid", "domain", "domain_valid"):
        setattr(args, name, [os.path.abspath(path) for path in getattr(args, name)])
    args.out, args.tasks = os.path.abspath(args.out), os.path.abspath(args.tasks)
    args.elektron = shutil.which(args.elektron) or os.path.abspath(args.elektron)
    args.domain_tokens = args.continue_tokens or args.tokens / 4
    args.domain_rate = args.continue_learning_rate or args.learning_rate / 2
    return args

class Stopped(Exception):
    """A signal, or the end of --max-minutes."""

class Failed(Exception):
    pass

class Stages:
    """Runs stages once each, and keeps their records."""

    def __init__(self, args):
        self.args, self.start, self.child, self.stopping = args, time.time(), None, False
        self.failed, self.seen = [], []
        self.records = os.path.join(args.out, "records")
        os.makedirs(self.records, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)

    def stop(self, number, frame):
        self.stopping = True
        if self.child:
            self.child.send_signal(signal.SIGTERM)

    def path(self, stage):
        return os.path.join(self.records, stage.replace(":", "-") + ".json")

    def record(self, stage):
        try:
            return json.load(open(self.path(stage)))
        except FileNotFoundError:
            return None

    def wanted(self, stage):
        only = self.args.only
        return not only or any(fnmatch.fnmatch(stage, pattern) for pattern in only)

    def run(self, stage, identity, work):
        """`identity` is what decides the result: a record made with another one is refused."""
        identity = json.loads(json.dumps(identity))
        found = self.record(stage)
        self.seen.append(stage)
        if self.args.list:
            print("done   " if found else "to do  ", stage)
            return found
        if found:
            if found["identity"] != identity:
                raise SystemExit(f"error: {self.path(stage)} was made with other settings: delete it "
                                 f"and what it describes, or give another --out\n"
                                 f"  then {found['identity']}\n  now  {identity}")
            return found
        if not self.wanted(stage):
            return None
        if self.stopping or self.left() == 0:
            raise Stopped
        print(f"[{time.strftime('%H:%M:%S')}] {stage}", flush=True)
        begun = time.time()
        try:
            result = work()
        except Failed as failure:
            print(f"error: {stage}: {failure}", file=sys.stderr)
            self.failed.append(stage)
            if not self.args.keep_going:
                raise SystemExit(1)
            return None
        made = dict(stage=stage, identity=identity, stage_seconds=round(time.time() - begun, 1)) | result
        with open(self.path(stage) + ".tmp", "w") as f:
            json.dump(made, f, indent=1)
        os.replace(self.path(stage) + ".tmp", self.path(stage))
        return made

    def left(self):
        limit = self.args.max_minutes
        return max(0.0, limit * 60 - (time.time() - self.start)) if limit else None

    def call(self, command, log, clock=None):
        """Runs a program to its end; `clock` is a file that adds up the seconds of its pieces."""
        environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="true")
        if self.args.threads:
            environment["OMP_NUM_THREADS"] = str(self.args.threads)
        begun = time.time()
        with open(log, "a") as out:
            out.write("$ " + shlex.join(command) + "\n"); out.flush()
            self.child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT,
                                          env=environment, start_new_session=True)
            if self.stopping:
                self.child.terminate()
            try:
                code = self.child.wait(self.left())
            except subprocess.TimeoutExpired:
                self.stopping = True
                self.child.terminate()
                code = self.child.wait()
            self.child = None
        seconds = time.time() - begun
        if clock:
            before = float(open(clock).read()) if os.path.exists(clock) else 0.0
            with open(clock, "w") as f:
                f.write(str(before + seconds))
            seconds += before
        if code == 75 or (self.stopping and code != 0):
            raise Stopped
        if code:
            said = open(log, errors="replace").read().rpartition("\n$ ")[2].splitlines()[1:]
            raise Failed("\n  ".join([f"exit code {code}; the end of {log}:", *said[-8:]]))
        return seconds

def merged(flags, extra):
    """Flags as a list; those of a string such as "--clip 0 --share gdes" replace the given ones."""
    flags, name = dict(flags), None
    for word in shlex.split(extra):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            flags[name] = [value] if value else []
        elif name is None:
            raise SystemExit(f"error: {extra!r} does not begin with a flag")
        else:
            flags[name] = [*flags[name], word]
    return [word for name, values in flags.items() for word in (name, *map(str, values))]

class Study:
    def __init__(self, args):
        self.args, self.stages = args, Stages(args)
        self.vocabulary = os.path.join(args.out, "vocabulary")
        self.configs = os.path.join(args.out, "configs")
        self.python = [sys.executable]

    def at(self, *parts):
        path = os.path.join(self.args.out, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def threads(self):
        return {"--threads": [self.args.threads]} if self.args.threads else {}

    def make_vocabulary(self):
        """One vocabulary, and the sizes of both networks, for every contender."""
        args = self.args
        def settings():
            command = [args.elektron, "pretrain", "--train", *args.train, "--preset", args.preset,
                       "--dry-run", "--json", "--steps", "1", "--output", self.at("none")]
            if os.path.exists(os.path.join(self.vocabulary, "tokenizer.json")):
                command += ["--tokenizer", self.vocabulary]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                raise Failed(run.stderr)
            return json.loads(run.stdout)
        def work():
            shutil.rmtree(self.vocabulary, ignore_errors=True)
            if args.tokenizer and os.path.isdir(args.tokenizer):
                shutil.copytree(args.tokenizer, self.vocabulary)
            elif args.tokenizer:
                from tokenizers import BertWordPieceTokenizer
                from transformers import PreTrainedTokenizerFast
                raw = BertWordPieceTokenizer(args.tokenizer, lowercase=True)._tokenizer
                PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", sep_token="[SEP]",
                                        mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]"
                                        ).save_pretrained(self.vocabulary)
            else:
                size = args.vocab_size or settings()["config"]["vocab-size"]
                self.stages.call([args.elektron, "tokenizer", "train", "--input", *args.train,
                                  "--vocab-size", str(size), "--output", self.vocabulary],
                                 self.at("logs", "vocabulary.log"))
            os.makedirs(self.configs, exist_ok=True)
            shown = settings()
            for name in ("generator", "discriminator"):
                with open(os.path.join(self.configs, name + ".json"), "w") as f:
                    json.dump(shown[name], f, indent=1)
            return dict(sizes={name: {key: shown[name][key] for key in SIZES}
                               for name in ("generator", "discriminator")})
        self.stages.run("vocabulary", dict(train=args.train, tokenizer=args.tokenizer,
                                           vocab_size=args.vocab_size, preset=args.preset), work)

    def steps(self, tokens, batch, seq):
        return max(1, round(tokens / (batch * seq)))

    def flags(self, which, tokens, rate, seed, train, valid, extra):
        """Flags of `elektron pretrain` for the settings that all contenders have in common."""
        args = self.args
        first = args.mlm_first if which == "rtd" and train == args.train else 0.0
        steps = self.steps(tokens / (1 + first), args.batch, args.seq)
        flags = {"--recipe": [args.recipe], "--train": train, "--validation": valid, "--tokenizer": [self.vocabulary],
                 "--preset": [args.preset], "--merge": ["concat"], "--lr-scheduler": ["linear"],
                 "--bias-correction": ["true"], "--seq-len": [args.seq], "--batch-size": [args.batch],
                 "--steps": [steps], "--warmup-steps": [round(args.warmup_ratio * steps)],
                 "--learning-rate": [f"{rate:g}"], "--seed": [seed]}
        if which == "mlm":
            flags["--objective"] = ["mlm"]
        else:
            flags["--mlm-first"] = [f"{first:g}"]
        return merged(flags, extra)

    def pretrain_elektron(self, stage, folder, flags, log_steps, tokens):
        args = self.args
        def work():
            run, clock = self.at("pretrain", folder), self.at("pretrain", folder + ".seconds")
            log = self.at("logs", folder + ".log")
            if os.path.exists(os.path.join(run, "run.json")):
                command = [args.elektron, "pretrain", "--resume", run, "--json", "--quiet"]
            else:
                shutil.rmtree(run, ignore_errors=True)
                command = [args.elektron, "pretrain", *flags, "--output", run, "--json", "--quiet",
                           "--log-to", "jsonl", "--log-every", str(log_steps),
                           "--eval-every", str(20 * log_steps), "--device", args.device,
                           "--shards", self.at("shards"), "--save-every", "500"]
                command += merged(self.threads(), "")
            seconds = self.stages.call(command, log, clock)
            seen = last_tokens(os.path.join(run, "metrics.jsonl"))
            first = os.path.join(run, "mlm", "metrics.jsonl")
            if os.path.exists(first):
                seen += last_tokens(first)
            self.check(run, tokens, seen)
            return dict(run=run, tokens=seen, seconds=round(seconds, 1))
        return self.stages.run(stage, dict(flags=flags), work)

    def check(self, run, tokens, seen):
        """Equal sizes, equal tokens, one vocabulary: otherwise the comparison is none."""
        encoder = os.path.join(run, "model" if os.path.isdir(os.path.join(run, "model"))
                               else "discriminator")
        wanted = json.load(open(os.path.join(self.configs, "discriminator.json")))
        made = json.load(open(os.path.join(encoder, "config.json")))
        other = [key for key in SIZES if wanted[key] != made[key]]
        if other:
            raise Failed(f"{encoder} has other sizes than the contenders: {', '.join(other)}")
        vocabularies = [json.load(open(os.path.join(path, "tokenizer.json")))["model"]["vocab"]
                        for path in (self.vocabulary, encoder)]
        if vocabularies[0] != vocabularies[1]:
            raise Failed(f"{encoder} has another vocabulary")
        if tokens and abs(seen - tokens) > 0.01 * tokens:
            raise Failed(f"{run} was trained on {seen:.0f} tokens instead of {tokens:.0f}")

    def pretrain_torch(self, stage, folder, seed):
        args = self.args
        steps = self.steps(args.budgets["torch"], args.batch, args.seq)
        flags = merged({"--train": args.train, "--valid": args.valid, "--tokenizer": [self.vocabulary],
                        "--configs": [self.configs], "--seq": [args.seq], "--batch": [args.batch],
                        "--steps": [steps], "--warmup": [round(args.warmup_ratio * steps)],
                        "--lr": [f"{args.learning_rate:g}"], "--seed": [seed]}, args.torch_args)
        def work():
            run, clock = self.at("pretrain", folder), self.at("pretrain", folder + ".seconds")
            os.makedirs(run, exist_ok=True)
            metrics = os.path.join(run, "metrics.jsonl")
            seconds = self.stages.call(
                [*self.python, PEER, *flags, *merged(self.threads(), ""), "--out", metrics, "--save", run,
                 "--save-every", "500", "--log", str(self.log_steps()), "--device", args.device],
                self.at("logs", folder + ".log"), clock)
            seen = last_tokens(metrics)
            self.check(run, args.budgets["torch"], seen)
            return dict(run=run, tokens=seen, seconds=round(seconds, 1))
        return self.stages.run(stage, dict(flags=flags), work)

    def log_steps(self):
        return max(1, self.steps(self.args.tokens, self.args.batch, self.args.seq) // 200)

    def pretrain(self, which, seed):
        args, stage, folder = self.args, f"pretrain:{which}-{seed}", f"{which}-{seed}"
        if which == "torch":
            return self.pretrain_torch(stage, folder, seed)
        extra = args.mlm_args if which == "mlm" else args.rtd_args
        tokens = args.budgets[which]
        flags = self.flags(which, tokens, args.learning_rate, seed, args.train, args.valid, extra)
        if which == "init":
            # A step too small to change anything: the weights as the recipe draws them.
            flags = merged({}, shlex.join(flags) + " --steps 1 --warmup-steps 0 --learning-rate 1e-12 "
                           "--weight-decay 0")
        return self.pretrain_elektron(stage, folder, flags, self.log_steps(),
                                      None if which == "init" else tokens)

    def judge(self, stage, run, text, training_text):
        args = self.args
        settings = dict(run=os.path.relpath(run, args.out), text=text, rows=args.judge_rows, seq=args.seq)
        def work():
            out = self.at("judged", stage.replace(":", "-") + ".json")
            self.stages.call(
                [*self.python, os.path.join(HERE, "judge.py"), run, "--text", *text, "--training-text",
                 *training_text, "--rows", str(args.judge_rows), "--seq", str(args.seq), "--json", out,
                 "--device", args.device, *merged(self.threads(), "")], self.at("logs", "judge.log"))
            return dict(figures=json.load(open(out)))
        return self.stages.run(stage, settings, work)

    def domain(self):
        """Continues rtd and mlm on other text; rtd and mlm from random weights for comparison."""
        args = self.args
        for which in [c for c in ("mlm", "rtd") if c in args.contenders]:
            extra = args.mlm_args if which == "mlm" else args.rtd_args
            before = self.at("pretrain", f"{which}-1")
            steps = self.steps(args.domain_tokens, args.batch, args.seq)
            if which == "mlm":
                start = {"--base": [os.path.join(before, "model")]}
            else:
                start = {"--generator": [os.path.join(before, "generator")],
                         "--discriminator": [os.path.join(before, "discriminator")]}
            for name, rate in (("continued", args.domain_rate), ("scratch", args.learning_rate)):
                flags = self.flags(which, args.domain_tokens, rate, 1, args.domain, args.domain_valid,
                                   extra)
                if name == "continued":
                    if not self.stages.record(f"pretrain:{which}-1") and not args.list:
                        continue
                    at = flags.index("--preset")
                    flags = [*flags[:at], *flags[at + 2:], *merged(start, "")]
                made = self.pretrain_elektron(f"domain:{which}-{name}", f"domain-{which}-{name}", flags,
                                              max(1, steps // 100), args.domain_tokens)
                if made or args.list:
                    self.judge(f"domain-judge:{which}-{name}", self.at("pretrain", f"domain-{which}-{name}"),
                               args.domain_valid, args.domain)
            if self.stages.record(f"pretrain:{which}-1") or args.list:
                self.judge(f"domain-judge:{which}-before", before, args.domain_valid, args.domain)

    def encoder(self, which, seed):
        """Flags of finetune.py for a contender's weights; None if they are not made yet."""
        if which == "random":
            return ["--config", os.path.join(self.configs, "discriminator.json")]
        number = 1 + (seed - 1) % self.args.pretrain_seeds
        if not self.stages.record(f"pretrain:{which}-{number}") and not self.args.list:
            return None
        return ["--model", self.at("pretrain", f"{which}-{number}",
                                   "model" if which == "mlm" else "discriminator")]

    def finetune(self, task, which, rate, seed):
        args, stage = self.args, f"finetune:{task}:{which}:{rate:g}:{seed}"
        model = self.encoder(which, seed)
        if model is None:
            return None
        settings = dict(model=[model[0], os.path.relpath(model[1], args.out)], epochs=args.epochs,
                        limit=args.limit)
        def work():
            out = self.at("finetuned", stage.replace(":", "-") + ".json")
            command = [*self.python, os.path.join(HERE, "finetune.py"), *model, "--tokenizer",
                       self.vocabulary, "--task", task, "--tasks", args.tasks, "--learning-rate",
                       f"{rate:g}", "--seed", str(seed), "--device", args.device, "--out", out]
            for name in ("epochs", "limit", "threads"):
                if getattr(args, name):
                    command += [f"--{name}", str(getattr(args, name))]
            self.stages.call(command, self.at("logs", "finetune.log"))
            return dict(figures=json.load(open(out)))
        return self.stages.run(stage, settings, work)

    def finetune_all(self):
        """Chooses the rate by the development scores, then runs the other seeds with it."""
        args = self.args
        for task in args.task:
            for which in args.contenders:
                scores = {}
                for rate in args.learning_rates:
                    made = [self.finetune(task, which, rate, 1 + s) for s in range(args.grid_seeds)]
                    if all(made):
                        scores[rate] = sum(m["figures"]["dev"] for m in made) / len(made)
                if len(scores) < len(args.learning_rates):
                    continue
                best = max(scores, key=scores.get)
                made = [self.finetune(task, which, best, 1 + s) for s in range(args.seeds)]
                if args.list or not all(made):
                    continue
                self.chosen.append(dict(
                    task=task, metric=made[0]["figures"]["metric"], contender=which, learning_rate=best,
                    grid={f"{rate:g}": round(score, 3) for rate, score in scores.items()},
                    dev=[m["figures"]["dev"] for m in made], test=[m["figures"]["test"] for m in made],
                    seconds=[m["figures"]["seconds"] for m in made]))

    def run(self):
        args, self.chosen = self.args, []
        self.make_vocabulary()
        trained = [which for which in args.contenders if which != "random"]
        for seed in range(1, args.pretrain_seeds + 1):
            for which in trained:
                made = self.pretrain(which, seed)
                if made or args.list:
                    self.judge(f"judge:{which}-{seed}", self.at("pretrain", f"{which}-{seed}"),
                               args.valid, args.train)
        if args.domain:
            self.domain()
        self.finetune_all()

def main():
    args = arguments()
    study = Study(args)
    code = 0
    try:
        study.run()
    except Stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        code = 75
    if args.list:
        return code
    write_tables(args, study.stages, study.chosen, CONTENDERS)
    if args.only and not any(study.stages.wanted(stage) for stage in study.stages.seen):
        print(f"error: no stage is called {' '.join(args.only)}; --list names them", file=sys.stderr)
        code = 1
    return code or bool(study.stages.failed)

if __name__ == "__main__":
    sys.exit(main())
