"""Time that a training waits: for its checkpoints, and for the data of a resumed run.

    python benchmarks/waiting.py    # about 2 minutes

Saving is compared with MMEngine's CheckpointHook, in turns, on one state. What resumed
runs need to their first update is compared with fresh starts. The data set needs 5 ms
an image, in two workers; MMEngine's loop would load all images of the run so far.
"""

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from common import report
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

import agvm_mm  # noqa: F401  registers the loops and hooks
from agvm_mm.validation import check_number
from gpu_check.tables import table

MB = 1_000_000
IMAGE_S = 0.005


class Images(torch.utils.data.Dataset):
    """Random images that take ``seconds`` each to load."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(self.seconds)
        return torch.full((4,), index / len(self))


class Parameters(BaseModel):
    """A small layer and so many numbers in 50 other parameters, which have no loss."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 1)
        self.large = nn.ParameterList(
            nn.Parameter(torch.rand(numbers // 50)) for _ in range(50)
        )

    def forward(self, inputs: Tensor, mode: str = 'loss') -> dict[str, Tensor]:
        """Return the mean of the outputs as the loss."""
        return dict(loss=self.backbone(inputs.float()).mean())

    def data_preprocessor(self, data: Tensor, training: bool) -> tuple[Tensor]:
        """Return the images as the arguments of ``forward``."""
        return (data,)


class Stopwatch(Hook):
    """Ends a run after one update, and notes how long the run took until then."""

    def before_run(self, runner: Runner) -> None:
        """Note the time, before a checkpoint is loaded."""
        self._start = time.perf_counter()

    def after_train_iter(self, runner: Runner, *_: object, **__: object) -> None:
        """Note the duration, and stop."""
        self.seconds = time.perf_counter() - self._start
        runner.train_loop.stop_training = True


def build(
    folder: Path,
    updates: int,
    *,
    numbers: int = 50,
    seconds: float = 0.0,
    workers: int = 0,
    hooks: Sequence[Hook] = (),
    resumed: str | None = None,
) -> Runner:
    """Return a Runner of updates of 16 images, which may resume a checkpoint."""
    return Runner(
        Parameters(numbers),
        str(folder),
        train_dataloader=dict(
            dataset=Images(seconds),
            sampler=dict(type='InfiniteSampler'),
            batch_size=8,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(
            type='LargeBatchIterTrainLoop', max_iters=updates, total_batch_size=16
        ),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=1e-3, momentum=0.9),
        ),
        default_hooks=dict(
            logger=None,
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=updates),
        ),
        custom_hooks=list(hooks),
        randomness=dict(seed=0),
        resume=resumed is not None,
        load_from=resumed,
        log_level='ERROR',
        experiment_name=uuid.uuid4().hex,
    )


def peak_memory(function: Callable[[], None]) -> float:
    """Return the bytes of memory that a call adds at its peak, sampled every 5 ms."""

    def used() -> int:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return pages * 4096

    before, found, done = used(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found.append(used() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        function()
    finally:
        done.set()
        thread.join()
    return max(found)


def measure_saves(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the times and memory of saves of so many bytes by both hooks, in turns."""
    # Weights and the momentum.
    runner = build(folder / 'run', 1, numbers=size // 8)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    for parameter in runner.model.parameters():
        momentum = torch.rand_like(parameter)
        optimizer.state[parameter]['momentum_buffer'] = momentum
    hooks = {}
    for kind in ('CheckpointHook', 'AtomicCheckpointHook'):
        settings = dict(interval=1, by_epoch=False, max_keep_ckpts=1)
        hook = HOOKS.build(dict(type=kind, out_dir=str(folder / kind), **settings))
        runner.hooks[:] = [hook]
        hook.before_train(runner)
        hooks[kind] = hook
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for kind, hook in hooks.items():
            runner.hooks[:] = [hook]
            # What the other has left to the disk.
            os.sync()
            start = time.perf_counter()
            save = hook._save_checkpoint_with_step
            memory = peak_memory(lambda save=save, n=number: save(runner, n, {}))
            seconds = time.perf_counter() - start
            if number:  # The first ones allocate.
                found.setdefault(f'{kind} s', []).append(seconds)
                found.setdefault(f'{kind} bytes', []).append(memory)
    return found


def measure_starts(folder: Path, updates: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds to the first update, fresh and after so many, in turns."""
    build(folder / 'run', updates).train()
    path = str(folder / 'run' / f'iter_{updates}.pth')
    found: dict[str, list[float]] = dict(fresh=[], resumed=[])
    for number in range(rounds):
        for kind in found:
            watch = Stopwatch()
            runner = build(
                folder / f'{kind}{number}',
                updates + 2,
                seconds=IMAGE_S,
                workers=2,
                hooks=[watch],
                resumed=path if kind == 'resumed' else None,
            )
            runner.train()
            found[kind].append(watch.seconds)
    return found


def ratio(found: dict[str, list[float]], above: str, below: str) -> float:
    """Return the median of the ratios of neighbors."""
    pairs = zip(found[above], found[below], strict=True)
    return median(a / b for a, b in pairs)


def describe(result: dict) -> str:
    """Return the report of a result."""
    settings, saves, starts = result['settings'], result['saves'], result['starts']
    size = settings['state']
    columns = [('', lambda row: row[0]), ('', lambda row: row[1])]
    rows = [
        ('MMEngine CheckpointHook', f'{median(saves["CheckpointHook s"]):.2f} s'),
        ('AtomicCheckpointHook', f'{median(saves["AtomicCheckpointHook s"]):.2f} s'),
        (
            'ratio',
            f'{ratio(saves, "AtomicCheckpointHook s", "CheckpointHook s"):.2f}',
        ),
        *(
            (
                f'memory beyond the state, {kind}',
                f'{median(saves[f"{kind} bytes"]) / size:.2f} of the file',
            )
            for kind in ('CheckpointHook', 'AtomicCheckpointHook')
        ),
        ('fresh start to the first update', f'{median(starts["fresh"]):.2f} s'),
        (
            f'resumed after {settings["updates"]:,} updates',
            f'{median(starts["resumed"]):.2f} s',
        ),
        ('ratio', f'{ratio(starts, "resumed", "fresh"):.2f}'),
    ]
    machine = report.describe_machine(result['environment'])
    return '\n'.join(
        [
            '# What a training waits for',
            '',
            f'Checkpoints of {size / MB:.0f} MB with max_keep_ckpts=1; updates of 16 '
            f'images of {IMAGE_S * 1000:.0f} ms in two workers. Medians of '
            f'{settings["rounds"]}, in turns, on {machine}. AtomicCheckpointHook also '
            'waits until the disk has the file.',
            '',
            table(columns, rows),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and write the report."""
    parser = report.make_parser(__doc__)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--state', type=int, default=500, help='MB of a checkpoint')
    parser.add_argument(
        '--updates', type=int, default=10_000, help='updates before the resume'
    )
    args = parser.parse_args(arguments)
    for name in ('rounds', 'state', 'updates'):
        check_number(f'--{name}', getattr(args, name), low=1, integer=True)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        settings = vars(args) | dict(state=args.state * MB)
        settings.pop('out')
        result = dict(
            benchmark='waiting',
            settings=settings,
            saves=measure_saves(folder / 'saves', settings['state'], args.rounds),
            starts=measure_starts(folder / 'starts', args.updates, args.rounds),
            environment=report.environment(1),
        )
    finally:
        shutil.rmtree(folder)
    report.write(args.out, 'waiting', result, describe(result))


if __name__ == '__main__':
    main()
