"""Train a detector with AGVM on handwritten digits, evaluate it and picture it.

Makes the data and a pretrained backbone if they are not there, trains the Faster
R-CNN of configs/digits at batch 256, measures COCO mAP on the validation scenes,
draws variance.png and predictions.png, and fails if the detector has not learnt.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

# Before matplotlib.pyplot is imported: there may be no display.
os.environ.setdefault('MPLBACKEND', 'agg')

from analysis import plot_predictions, plot_variance

from agvm_mm import cli
from agvm_mm.checkpoint.loading import allow_runner_checkpoints
from agvm_mm.digits import pretrain_backbone, write_digits

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'configs/digits/faster-rcnn_r18_w16_fpn_agvm-sgd_b256_10e_digits.py'
DATA = 'data/digits'
LEAST_MAP = 0.30


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/demo', help='folder for all that is made'
    )
    parser.add_argument(
        '--ranks',
        type=int,
        default=default_ranks(),
        help='processes to train with; 1 accumulates the whole batch by itself',
    )
    args = parser.parse_args(argv)
    if args.ranks < 1:
        parser.error(f'--ranks must be at least 1, got {args.ranks}')
    return args


def default_ranks():
    """Ranks for this machine: all GPUs, or two processes if there are the cores."""
    import torch

    # The total batch of 256 is cut into 32 images at a time, so 8 ranks at most.
    if torch.cuda.is_available():
        return max(n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count())
    return 2 if len(os.sched_getaffinity(0)) > 1 else 1


def train(work_dir, ranks):
    """Run the training tool and show its progress.

    The full output is in the run's log; on failure its end is shown.

    Args:
        work_dir (str): Folder of the run.
        ranks (int): Processes to train with.
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
                if news := shorten(line):
                    print(news, flush=True)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.stderr.writelines(last_lines)
        sys.exit(f'Training failed with exit code {process.returncode}')


def shorten(line):
    """What a reader follows, from a line of the log; None if there is nothing.

    Args:
        line (str): Line of the training tool's output.

    Returns:
        str or None: Progress or a validation result in a few words.
    """
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


def summarize(records, files):
    """The closing table.

    Args:
        records (list[dict]): Records of the run's JSON log.
        files (dict[str, Path]): What lies where.

    Returns:
        tuple[str, float]: The table, and the bbox mAP of the last validation.
    """
    evaluated = [record for record in records if 'coco/bbox_mAP' in record]
    score = evaluated[-1]['coco/bbox_mAP']
    rows = [
        f'{"bbox mAP":<12}{score:.3f}   (AP50 {evaluated[-1]["coco/bbox_mAP_50"]:.3f})',
        '',
        f'{"module":<24}{"Phi":>8}{"mu":>8}   at the last update',
    ]
    phi = plot_variance.module_curves(records, plot_variance.PHI_KEY)
    mu = plot_variance.module_curves(records, plot_variance.MU_KEY)
    for module, (_, values) in phi.items():
        rows.append(f'{module:<24}{values[-1]:>8.3f}{mu[module][1][-1]:>8.3f}')
    rows.append('')
    rows += [f'{name:<12}{path}' for name, path in files.items()]
    return '\n'.join(rows), score


def main():
    """Make the data, train, evaluate, draw, and report."""
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
    log = plot_variance.find_log(work_dir)
    records = plot_variance.read_scalars(log)
    files = {
        'checkpoint': Path((work_dir / 'last_checkpoint').read_text().strip()),
        'log': log,
        'pictures': work_dir / 'variance.png',
        '': work_dir / 'predictions.png',
    }
    figure = plot_variance.plot_variance(
        records, title='Faster R-CNN on digits, AGVM-SGD, batch 256'
    )
    plot_variance.save_figure(figure, files['pictures'])
    allow_runner_checkpoints()
    results, classes = plot_predictions.predict(
        cli.load_config(CONFIG), str(files['checkpoint']), range(6)
    )
    figure = plot_predictions.plot_predictions(results, classes)
    plot_variance.save_figure(figure, files[''])

    table, score = summarize(records, files)
    print(f'\n{table}\n{"time":<12}{(time.perf_counter() - start) / 60:.1f} minutes')
    if score < LEAST_MAP:
        sys.exit(f'bbox mAP {score:.3f} is below {LEAST_MAP}: it has not learnt.')


if __name__ == '__main__':
    main()
