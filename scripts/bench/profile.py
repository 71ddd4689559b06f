"""Where the time of one of our fits goes, by operation, in one thread.

    python -m scripts.bench.profile sft

Times are those of the operation itself, without what it calls, as torch's profiler tells them; shares are of their sum.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.bench.rows import ROWS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=list(ROWS))
    parser.add_argument("--operations", type=int, default=20, help="how many to name")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        row = ROWS[args.row](Path(folder))
        row.ours()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            rate = row.ours()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{args.row}: {rate:.1f} {row.unit} under the profiler, {total / 1e6:.2f} s of operations")
    for event in events[: args.operations]:
        print(f"{event.self_cpu_time_total / total:6.1%}  {event.self_cpu_time_total / 1e6:7.3f} s  {event.count:7,} x  {event.key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
