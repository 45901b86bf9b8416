"""What the benchmarks share: ranks, models, clocks, counters, tables."""

import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.utils import digit_version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from agvm_mm.estimators import build_estimator

RESULTS = Path(__file__).parent / 'results'


# Ranks ---------------------------------------------------------------------------


def on_gpus(ranks: int) -> bool:
    """Whether each rank gets a GPU of its own (NCCL) rather than a core (gloo)."""
    return torch.cuda.is_available() and torch.cuda.device_count() >= ranks


def run_on_ranks(
    function: Callable, ranks: int, *args, preload: Sequence[str] = ()
) -> list:
    """Run ``function(*args)`` on several ranks of this machine.

    Args:
        function (Callable): A function of a module; it is pickled by name.
        ranks (int): Number of processes.
        args: Its arguments.
        preload (Sequence[str]): Modules that take long to import; imported once and
            inherited by the ranks.

    Returns:
        list: What each rank returned.

    Raises:
        RuntimeError: If a rank fails; with its traceback.
    """
    # Two ranks on two cores: threads of one would take the other's core.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    context = mp.get_context('forkserver')
    context.set_forkserver_preload(['torch', *preload])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(function, rank, ranks, folder, args))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        errors = [path.read_text() for path in sorted(Path(folder).glob('*.error'))]
        codes = [process.exitcode for process in processes]
        if errors or any(codes):
            raise RuntimeError('\n'.join(errors) or f'exit codes {codes}')
        return [
            torch.load(Path(folder, f'{rank}.result'), weights_only=False)
            for rank in range(ranks)
        ]


def _rank(function, rank: int, ranks: int, folder: str, args) -> None:
    os.environ['LOCAL_RANK'] = str(rank)  # MMEngine reads it.
    # Every weight's initialisation is told otherwise.
    MMLogger.get_current_instance().setLevel('WARNING')
    warnings.filterwarnings('ignore', category=FutureWarning)
    gpus = on_gpus(ranks)
    if gpus:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    try:
        dist.init_process_group(
            'nccl' if gpus else 'gloo',
            init_method=f'file://{folder}/rendezvous',
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(minutes=10),
        )
        torch.save(function(*args), Path(folder, f'{rank}.result'))
        # See tests/ranks.py.
        time.sleep(0.02)
        dist.destroy_process_group()
    except Exception:
        Path(folder, f'{rank}.error').write_text(
            f'rank {rank}:\n{traceback.format_exc()}'
        )
        raise SystemExit(1) from None


# What is compared ----------------------------------------------------------------


class Switch:
    """A measurement schedule that is thrown by hand. mu always acts."""

    measured = False

    def is_active(self, update: int) -> bool:
        """As in ``MeasurementSchedule``."""
        return True

    def is_measured(self, update: int) -> bool:
        """As in ``MeasurementSchedule``."""
        return self.measured


class Trainer:
    """One way to train: a copy of the model in DDP, and its optimizer wrapper.

    The learning rate is 0: a step does all its arithmetic, but the copies stay the
    same, so that all of them do the same work on the same images.

    Args:
        model (BaseModel): This trainer's own copy, on the CPU.
        estimator (str, optional): 'halves' or 'replicas'; None for a plain
            ``OptimWrapper`` and DDP's own reduction. Defaults to None.
        optimizer (str): 'SGD' or 'AdamW'. Defaults to 'SGD'.
        accumulation (int): Micro-batches of one update, all with the same images.
            Defaults to 1.
    """

    def __init__(
        self,
        model: BaseModel,
        estimator: str | None = None,
        optimizer: str = 'SGD',
        accumulation: int = 1,
    ) -> None:
        self.accumulation = accumulation
        settings = dict(type=optimizer, lr=0.0, weight_decay=1e-4)
        if optimizer == 'SGD':
            settings['momentum'] = 0.9
        device_ids = None
        if on_gpus(dist.get_world_size()):
            model = model.cuda()
            device_ids = [torch.cuda.current_device()]
        self.ddp = MMDistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False
        )
        self.switch = Switch()
        self.estimator = None
        if estimator is None:
            self.wrapper: OptimWrapper = build_optim_wrapper(
                model,
                dict(
                    type='OptimWrapper',
                    optimizer=settings,
                    accumulative_counts=accumulation,
                ),
            )
            return
        self.wrapper = build_optim_wrapper(
            model,
            dict(
                type='AGVMOptimWrapper',
                constructor='AGVMOptimWrapperConstructor',
                optimizer=settings,
                accumulative_counts=accumulation,
            ),
        )
        self.estimator = build_estimator(
            estimator, self.wrapper.optimizer, self.ddp, accumulation=accumulation
        )
        self.wrapper.attach(self.estimator, self.switch)

    def update(self, batch: dict, *, measured: bool = False, seed: int = 0) -> None:
        """One optimizer update.

        Args:
            batch (dict): This rank's images.
            measured (bool): Whether AGVM measures at it. Defaults to False.
            seed (int): Of the samplers of boxes. Defaults to 0.
        """
        self.switch.measured = measured
        torch.manual_seed(seed)
        for _ in range(self.accumulation):
            self.ddp.train_step(batch, self.wrapper)

    def timed_update(self, batch: dict, **kwargs) -> tuple[float, float]:
        """Seconds that :meth:`update` takes on this rank, from a common start.

        Returns:
            tuple[float, float]: Seconds of the clock, and of all this process's
            threads on the processor. Other programs lengthen the first, hardly the
            second.
        """
        dist.barrier()
        synchronize()
        start, start_cpu = time.perf_counter(), time.process_time()
        self.update(batch, **kwargs)
        synchronize()
        return time.perf_counter() - start, time.process_time() - start_cpu

    def reduced_bytes(self, batch: dict, **kwargs) -> dict[str, int]:
        """Bytes that this rank hands to all-reduces in one update, by kind.

        'gradients' are reductions of whole buckets. Those that run in Python are
        seen as calls of ``torch.distributed.all_reduce``. Where there is no
        communication hook, DDP reduces in C++, and its own log says the sizes of
        its buckets. 'statistics' are all other calls: sums for the variances, and
        averages that a detector's losses may take over the ranks. One rank reduces
        nothing.
        """
        if dist.get_world_size() == 1:
            return dict(gradients=0, statistics=0)
        sizes = self.bucket_bytes()
        with counted_reductions() as calls:
            self.update(batch, **kwargs)
        in_buckets = sum(size for size in calls if size in sizes)
        statistics_ = sum(calls) - in_buckets
        if self.estimator is None:
            in_buckets += sum(sizes)
        return dict(gradients=in_buckets, statistics=statistics_)

    def bucket_bytes(self) -> list[int]:
        """Bytes of each of DDP's buckets, as laid out after the first update."""
        log = self.ddp._get_ddp_logging_data()
        sizes = log.get('rebuilt_bucket_sizes') or log['bucket_sizes']
        return [int(size) for size in sizes.split(',')]


def alternate(
    trainers: Mapping[str, Trainer],
    cells: Sequence[tuple[str, bool]],
    batch_of: Callable[[int], dict],
    *,
    rounds: int,
    warmup: int,
) -> dict[tuple[str, bool], list[tuple[float, float]]]:
    """Time every cell once a round, on the same images, in an order that turns.

    Args:
        trainers (Mapping[str, Trainer]): By variant.
        cells (Sequence[tuple[str, bool]]): Variant, and whether it measures.
        batch_of (Callable[[int], dict]): This rank's images by round.
        rounds (int): Rounds that count.
        warmup (int): Rounds before those.

    Returns:
        dict[tuple[str, bool], list[tuple[float, float]]]: Seconds, see
        :meth:`Trainer.timed_update`, by cell and round.
    """
    seconds = {cell: [] for cell in cells}
    for turn in range(warmup + rounds):
        batch = batch_of(turn)
        for cell in rotated(cells, turn):
            variant, measured = cell
            taken = trainers[variant].timed_update(batch, measured=measured, seed=turn)
            if turn >= warmup:
                seconds[cell].append(taken)
        if dist.get_rank() == 0:
            print(f'\rround {turn + 1} of {warmup + rounds}', end=' ', file=sys.stderr)
    return seconds


def compared(
    seconds_by_rank: Sequence[dict], plain: Sequence[tuple[str, bool]]
) -> dict[tuple[str, bool], dict]:
    """Medians and quartiles of what :func:`alternate` found on all ranks.

    Args:
        seconds_by_rank (Sequence[dict]): What each rank found.
        plain (Sequence[tuple[str, bool]]): The cells whose mean others are compared
            with.

    Returns:
        dict[tuple[str, bool], dict]: By cell: 'seconds' of the slowest rank, their
        'ratio' to plain in the same round, 'cpu_ratio' of the processor's seconds
        summed over the ranks, and 'seconds_by_round'.
    """
    clock, cpu = {}, {}
    for cell in seconds_by_rank[0]:
        rounds = list(zip(*(found[cell] for found in seconds_by_rank), strict=True))
        clock[cell] = [max(seconds for seconds, _ in ranks) for ranks in rounds]
        cpu[cell] = [sum(seconds for _, seconds in ranks) for ranks in rounds]
    plain_clock, plain_cpu = (
        [
            statistics.mean(values)
            for values in zip(*(by[c] for c in plain), strict=True)
        ]
        for by in (clock, cpu)
    )
    return {
        cell: dict(
            seconds=spread(clock[cell]),
            ratio=spread(ratios(clock[cell], plain_clock)),
            cpu_ratio=spread(ratios(cpu[cell], plain_cpu)),
            seconds_by_round=[round(value, 5) for value in clock[cell]],
        )
        for cell in clock
    }


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Quotients in pairs."""
    return [a / b for a, b in zip(values, others, strict=True)]


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def counted_reductions():
    """Lists the bytes of every ``torch.distributed.all_reduce`` that is begun."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        sizes.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    with mock.patch.object(dist, 'all_reduce', counted):
        yield sizes


def rotated(cells: Sequence, turn: int) -> list:
    """The cells from another start each turn, every other turn backwards.

    So each comes equally often early and late, and not always after the same one.
    """
    start = turn % len(cells)
    order = [*cells[start:], *cells[:start]]
    return order[::-1] if turn % 2 else order


# Memory --------------------------------------------------------------------------


def storages_tell() -> bool:
    """Whether this torch says when a tensor's memory is freed.

    2.13 does; 2.1 does not, and dies in the end if it is asked. Nothing between 2.1
    and 2.6 was tried.
    """
    return digit_version(torch.__version__) >= digit_version('2.6')


class LiveBytes(TorchDispatchMode):
    """Follows the memory of all tensors that are made while it is on.

    A new tensor counts from its making until its storage is freed. May be on in
    several threads at a time.

    Attributes:
        peak (int): The most bytes that lived at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        # Freeing a tensor may interrupt the very thread that counts.
        self._lock = threading.RLock()

    def add(self, count: int) -> None:
        """Count bytes that come, or go if negative."""
        with self._lock:
            self.live += count
            self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            leaf.untyped_storage()._cdata
            for leaf in tree_flatten((args, kwargs))[0]
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                # A view, or a tensor changed in place, is nothing new.
                if storage._cdata not in known:
                    known.add(storage._cdata)
                    self.add(storage.nbytes())
                    weakref.finalize(storage, self.add, -storage.nbytes())
        return result


def estimator_memory(trainer: Trainer, batch: dict, **kwargs) -> dict[str, int]:
    """The most memory that the estimator holds in a measured update.

    Follows every tensor made inside the communication hook and the callbacks that
    it leaves with its reductions. DDP's buckets and gradients are not among them,
    and neither is what gloo or NCCL allocate below.

    Returns:
        dict[str, int]: 'own' bytes at their highest; bytes of buckets 'in_flight'
        at their highest, i.e. handed to the hook and not yet reduced; and
        'left_over', own bytes that still lived after the update.
    """
    own, in_flight = LiveBytes(), LiveBytes()
    reduce_measured = trainer.estimator.reduce_measured
    # torch.futures.Future inherits it; work.get_future() returns this very class.
    future_type = torch._C.Future
    then = future_type.then

    def followed(callback):
        def run(future):
            with own:
                return callback(future)

        return run

    def reduce(bucket, segments, table):
        size = bucket.buffer().nbytes
        in_flight.add(size)
        with own:
            future = reduce_measured(bucket, segments, table)
        future.add_done_callback(lambda _: in_flight.add(-size))
        return future

    with (
        mock.patch.object(trainer.estimator, 'reduce_measured', reduce),
        mock.patch.object(future_type, 'then', lambda self, c: then(self, followed(c))),
    ):
        trainer.update(batch, measured=True, **kwargs)
    # A thread of the backend may be about to let go of the last callback.
    patience = time.monotonic() + 5
    while own.live and time.monotonic() < patience:
        time.sleep(0.01)
    return dict(own=own.peak, in_flight=in_flight.peak, left_over=own.live)


def device_peak(trainer: Trainer, batch: dict, **kwargs) -> int | None:
    """Peak bytes allocated on the GPU in one update; None on a CPU."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    torch.cuda.reset_peak_memory_stats()
    trainer.update(batch, **kwargs)
    synchronize()
    return torch.cuda.max_memory_allocated()


# Reports -------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    values = list(values)
    if len(values) == 1:
        values = values * 2
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return dict(median=middle, quartile_1=low, quartile_3=high)


def environment(ranks: int) -> dict:
    """What the figures were taken on; figures of another machine differ."""
    gpus = on_gpus(ranks)
    return dict(
        device=torch.cuda.get_device_name() if gpus else processor_name(),
        backend='nccl' if gpus else 'gloo',
        ranks=ranks,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 0,
        threads_per_rank=None if gpus else 1,
        load_average=[round(load, 1) for load in os.getloadavg()],
        torch=torch.__version__,
        python=platform.python_version(),
        date=datetime.date.today().isoformat(),
    )


def processor_name() -> str:
    """The processor's model name."""
    info = Path('/proc/cpuinfo')
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        '| ' + ' | '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + ' |'
        for row in cells
    ]
    rule = '| ' + ' | '.join('-' * width for width in widths) + ' |'
    return '\n'.join([lines[0], rule, *lines[1:]])


def megabytes(count: float | None) -> str:
    """Bytes as MB (10^6 bytes), with as many digits as tell something."""
    if count is None:
        return ''
    value = count / 1e6
    return f'{value:.1f}' if value >= 1 else f'{value:.5f}'.rstrip('0').rstrip('.')


def write(out: Path, name: str, result: dict, report: str) -> None:
    """Print a report, and write it as Markdown beside the figures as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f'{name}.json').write_text(json.dumps(result, indent=1) + '\n')
    (out / f'{name}.md').write_text(report + '\n')
    print(report, flush=True)
