"""Draw the error curves of the documentation, from the folders of the runs.

    numbadrop train --model deepcnet --pattern none --output runs/none    # and so on
    python docs/figures/curves.py runs/batchwise runs/none --over epochs time --output errors.png

Each run is called by the name of its folder. Where other work went on beside the runs, give the
time of an epoch of each, measured apart: ``--epoch-seconds 94 137``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from numbadrop.train import METRICS_NAME, plot_curves, read_metrics

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("runs", nargs="+", type=Path, help="folders with a metrics.jsonl")
parser.add_argument("--over", nargs="+", choices=("epochs", "time"), default=["epochs"])
parser.add_argument("--epoch-seconds", nargs="+", type=float, help="one for each run")
parser.add_argument("--title", default="")
parser.add_argument("--output", type=Path, required=True)
args = parser.parse_args()

histories = {run.name: read_metrics(run / METRICS_NAME) for run in args.runs}
if args.epoch_seconds:
    for (name, history), seconds in zip(histories.items(), args.epoch_seconds, strict=True):
        histories[name] = [metrics._replace(seconds=seconds) for metrics in history]
plot_curves(histories, args.output, args.title, tuple(args.over))
