#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader and compares them with metrics.jsonl.

    pip install tensorboard
    python check_tensorboard.py RUN

Checks that every number of metrics.jsonl is there under its tag and step, once, and nothing else: also for a run that was
resumed, whose older files hold steps that were made again.
"""
import json, os, struct, sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = sys.argv[1]
events = EventAccumulator(run, size_guidance={"scalars": 0})
events.Reload()
want = {}
for text in open(os.path.join(run, "metrics.jsonl")):
    line = json.loads(text)
    group, values = ("eval", line["eval"]) if "eval" in line else ("train", line)
    for key, value in values.items():
        if key not in ("step", "steps") and isinstance(value, (int, float)):
            want.setdefault(f"{group}/{key}", []).append((line["step"], struct.unpack("f", struct.pack("f", value))[0]))
got = {}
for tag in events.Tags()["tensors"]:
    got[tag] = [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors(tag)]
for tag in events.Tags()["scalars"]:
    got[tag] = [(e.step, e.value) for e in events.Scalars(tag)]
assert got.keys() == want.keys(), (sorted(got), sorted(want))
for tag, values in want.items():
    assert sorted(got[tag]) == sorted(values), f"{tag}: {got[tag]} is not {values}"
files = [name for name in os.listdir(run) if name.startswith("events.out.tfevents.")]
print(f"{sum(map(len, got.values()))} values under {len(got)} tags in {len(files)} files are those of metrics.jsonl")
