#!/usr/bin/env python3
"""A table of kernels from what `ncu --csv` wrote: launches, and of each the mean time, device memory traffic, and how busy the tensor cores are.

    python3 kernel_times.py NCU.csv > TABLE.csv
"""
import collections, csv, sys

MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3}
MEGABYTES = {"byte": 1e-6, "Kbyte": 1e-3, "Mbyte": 1.0, "Gbyte": 1e3}
MOST = 30

lines = [line for line in open(sys.argv[1]) if not line.startswith("==")]
kernels = collections.defaultdict(lambda: collections.defaultdict(float))
launches = collections.defaultdict(set)
for row in csv.DictReader(lines):
    kernel = row["Kernel Name"].split("(")[0][:58], row["Grid Size"].replace(", ", "x").strip("()")
    launches[kernel].add(row["ID"])
    value, unit, metric = float(row["Metric Value"].replace(",", "")), row["Metric Unit"], row["Metric Name"]
    if metric.startswith("gpu__time"):
        kernels[kernel]["us"] += value * MICROSECONDS[unit]
    elif metric.startswith("dram"):
        kernels[kernel]["mb"] += value * MEGABYTES[unit]
    elif "tensor" in metric:
        kernels[kernel]["tensor"] += value
print("kernel,grid,launches,us_each,mb_each,tb_per_s,tensor_pipe_percent")
for (name, grid), sums in sorted(kernels.items(), key=lambda item: -item[1]["us"])[:MOST]:
    n = len(launches[name, grid])
    print(f"{name},{grid},{n},{sums['us'] / n:.1f},{sums['mb'] / n:.1f},{sums['mb'] / sums['us']:.2f},{sums['tensor'] / n:.0f}")
