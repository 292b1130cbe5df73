#!/usr/bin/env python3
"""Two runs of the same settings on different devices, from their metrics.jsonl: exit code 1 unless they learn alike.

    python3 compare_runs.py CPU/metrics.jsonl GPU/metrics.jsonl

The first step must agree to bf16's rounding. Later ones see other samples of the generator, so the last quarter's means are compared, within
four standard errors of their own scatter and two per cent.
"""
import json, math, statistics, sys

def read(path):
    lines = [json.loads(line) for line in open(path)]
    return [line for line in lines if "loss" in line]

a, b = read(sys.argv[1]), read(sys.argv[2])
assert len(a) == len(b) and len(a) >= 8, "the runs differ in length"
wrong = False
for name in ["gen_loss", "disc_loss"]:
    first = abs(a[0][name] - b[0][name]) / a[0][name]
    x, y = ([line[name] for line in run[-len(run) // 4:]] for run in (a, b))
    error = math.sqrt((statistics.variance(x) + statistics.variance(y)) / len(x))
    difference = abs(statistics.mean(x) - statistics.mean(y))
    allowed = 4 * error + 0.02 * statistics.mean(x)
    verdict = first < 0.01 and difference < allowed
    wrong |= not verdict
    print(json.dumps(dict(metric=name, first_step=first, mean_cpu=statistics.mean(x), mean_gpu=statistics.mean(y),
                          difference=difference, allowed=allowed, agree=verdict)))
sys.exit(1 if wrong else 0)
