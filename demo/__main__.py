"""Train a detector with AGVM on handwritten digits, evaluate it and draw it.

Writes the data and a pretrained backbone if they do not exist, trains the Faster R-CNN
of configs/digits at batch 256, measures COCO mAP on the validation scenes, draws
variance.png and predictions.png, and fails if the detector has not learned.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from agvm_mm import cli
from agvm_mm.method.noise_scale import ALL, extra_images, saved_updates
from agvm_mm.report import figures, logs
from agvm_mm.report.forecast import format_images
from agvm_mm.training.loading import allow_runner_checkpoints
from demo import pretrain_backbone, write_digits
from demo.predictions import plot_predictions, predict

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
DATA = 'data/digits'
MIN_MAP = 0.30


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--work-dir', default='work_dirs/demo', help='folder for the results')
    ranks = 'processes to train with; 1 accumulates the whole batch alone'
    add('--ranks', type=int, default=default_ranks(), help=ranks)
    args = parser.parse_args(argv)
    if args.ranks < 1:
        parser.error(f'--ranks must be at least 1, got {args.ranks}')
    return args


def default_ranks() -> int:
    """Return up to 8 ranks on GPUs, or two on the CPU if it has the cores."""
    # At 32 images per rank, the total batch of 256 is enough for 8 ranks.
    if torch.cuda.is_available():
        return max(n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count())
    return 2 if len(os.sched_getaffinity(0)) > 1 else 1


def train(work_dir: str, ranks: int) -> None:
    """Run the training tool and show its progress.

    The full output is in the run's log. After a failure its last lines are shown.
    """
    if ranks > 1:
        command = ['tools/dist_train.sh', CONFIG, str(ranks)]
    else:
        command = [sys.executable, 'tools/train.py', CONFIG]
    command += ['--work-dir', work_dir]
    print('+', ' '.join(command), flush=True)
    last_lines = deque(maxlen=60)
    with subprocess.Popen(
        command,
        env=dict(os.environ, PYTHON=sys.executable),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    ) as process:
        try:
            for line in process.stdout:
                last_lines.append(line)
                if short := shorten(line):
                    print(short, flush=True)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.stderr.writelines(last_lines)
        sys.exit(f'Training failed with exit code {process.returncode}')


def shorten(line: str) -> str | None:
    """Return the progress or the validation result in a line of the log, or None."""
    position = re.search(r'Epoch\((train|val)\) +\[(\d+)\]\[ *(\d+)/(\d+)\]', line)
    if position is None:
        return None
    mode, epoch, update, updates = position.groups()
    fields = dict(re.findall(r'([\w/]+): ([-+.:\de]+)', line))
    if mode == 'train':
        return (
            f'epoch {epoch:>2}  update {update:>2}/{updates}  '
            f'lr {float(fields["lr"]):.2g}  loss {float(fields["loss"]):.3f}  '
            f'({fields["eta"]} to go)'
        )
    if 'coco/bbox_mAP' in fields:
        return f'epoch {epoch:>2}  validation: bbox mAP {fields["coco/bbox_mAP"]}'
    return None


def summarize(
    records: Sequence[logs.Record], files: Mapping[str, Path]
) -> tuple[str, float]:
    """Return the final table of a run, and the bbox mAP of its last validation.

    Args:
        records: Records of the run's JSON log.
        files: Files to list, by title.
    """
    last = [record for record in records if 'time' in record and 'lr' not in record][-1]
    # A detector that finds no box has no result.
    score, at_50 = (last.get(key, 0.0) for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50'))
    rows = [
        f'{"bbox mAP":<12}{score:.3f}   (AP50 {at_50:.3f})',
        '',
        f'{"module":<24}{"Phi":>8}{"mu":>8}{"noise scale":>18}   at the last update',
    ]
    phi, mu, noise = (
        {
            module: values[-1]
            for module, (_, values) in logs.module_curves(records, key).items()
        }
        for key in (logs.PHI_KEY, logs.MU_KEY, logs.NOISE_KEY)
    )
    for module in phi:
        rows.append(
            f'{module:<24}{phi[module]:>8.3f}{mu[module]:>8.3f}'
            f'{format_images(noise[module]):>18}'
        )
    rows.append(f'{"whole network":<40}{format_images(noise[ALL]):>18}')
    rows += ['', explain_noise_scale(noise[ALL], logs.total_batch(records)), '']
    rows += [f'{name:<12}{path}' for name, path in files.items()]
    return '\n'.join(rows), score


def explain_noise_scale(noise_scale: float, batch: int) -> str:
    """Return a sentence on the noise scale and a batch; NaN: not resolved."""
    if math.isnan(noise_scale):
        return (
            'The noise scale of the network is not resolved: its gradient is too noisy '
            'for so few measurements.'
        )
    saved = saved_updates(2 * batch, noise_scale)
    extra = extra_images(2 * batch, noise_scale)
    images = format_images(noise_scale)
    return (
        f'With {images} (the noise scale) a gradient is half noise; '
        f'doubling the batch of {batch}\nwould save {saved:.0%} of the updates (50% at '
        f'most) and take {extra:.0%} more images.'
    )


def main() -> None:
    """Write the data, train, evaluate, draw, and report."""
    args = parse_args()
    start = time.perf_counter()
    work_dir = Path(args.work_dir).absolute()
    os.chdir(ROOT)  # paths in configs are relative to the repository

    print('[1/3] data and backbone', flush=True)
    write_digits(DATA)
    backbone = pretrain_backbone(DATA)
    print(f'The backbone names {backbone["accuracy"]:.1%} of unseen digits right.')

    print(f'[2/3] training with AGVM on {args.ranks} process(es)', flush=True)
    train(str(work_dir), args.ranks)

    print('[3/3] pictures', flush=True)
    log = logs.find_logs(work_dir)[-1]
    records = logs.read_scalars(log)
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip())
    files = {'checkpoint': checkpoint, 'log': log}
    files |= {'pictures': work_dir / 'variance.png', '': work_dir / 'predictions.png'}
    title = 'Faster R-CNN on digits, AGVM-SGD, batch 256'
    figure = figures.plot_run(records, title=title)
    figures.save_figure(figure, files['pictures'])
    allow_runner_checkpoints()
    results, classes = predict(cli.load_config(CONFIG), str(checkpoint), range(6))
    figures.save_figure(plot_predictions(results, classes), files[''])

    table, score = summarize(records, files)
    print(f'\n{table}\n{"time":<12}{(time.perf_counter() - start) / 60:.1f} minutes')
    if score < MIN_MAP:
        sys.exit(f'bbox mAP {score:.3f} is below {MIN_MAP}: it has not learned.')


if __name__ == '__main__':
    main()
