"""Command lines and reports of the benchmarks: Markdown, with all figures as JSON."""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import torch

from gpu_check.ranks import Ranks

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results'


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Build a parser with ``--out`` from the docstring of a script."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--out', type=Path, default=RESULTS, help='folder of the results'
    )
    return parser


def environment(ranks: int) -> dict:
    """Return facts about the machine and the software that a result depends on."""
    used = Ranks.with_own_gpus(ranks)
    return dict(
        device=torch.cuda.get_device_name() if used.gpus else processor_name(),
        backend=used.backend,
        ranks=ranks,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 0,
        threads_per_rank=None if used.gpus else 1,
        load_average=[round(load, 1) for load in os.getloadavg()],
        torch=torch.__version__,
        python=platform.python_version(),
        date=datetime.date.today().isoformat(),
    )


def processor_name() -> str:
    """Return the model name of the processor."""
    info = Path('/proc/cpuinfo')
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine(environment: dict) -> str:
    """Return the facts of :func:`environment` as a part of a sentence."""
    return (
        f'{environment["backend"]} ranks on {environment["device"]} '
        f'({environment["cores"]} cores, load average at the end '
        f'{environment["load_average"][0]}), torch {environment["torch"]}, '
        f'{environment["date"]}'
    )


def write(out: Path, name: str, result: dict, report: str) -> None:
    """Print a report and write it to ``{name}.md``, the result to ``{name}.json``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f'{name}.json').write_text(json.dumps(result, indent=1) + '\n')
    (out / f'{name}.md').write_text(report + '\n')
    print(report, flush=True)
