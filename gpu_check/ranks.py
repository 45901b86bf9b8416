"""Functions on several ranks of this machine, on GPUs or on CPU cores."""

import datetime
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.logging import MMLogger

# On CPU cores these are imported once, and the ranks inherit them.
PRELOAD = ['torch', 'agvm_mm', 'mmdet.models', 'mmdet.structures', 'demo.detection']


@dataclass(frozen=True)
class Ranks:
    """Processes of this machine that communicate with each other.

    Args:
        count: Number of ranks.
        gpus: GPUs that they use; 0 for CPU cores. If they are fewer than the ranks,
            the ranks share them and communicate over gloo: NCCL accepts one per GPU.
    """

    count: int
    gpus: int

    @classmethod
    def with_own_gpus(cls, count: int) -> 'Ranks':
        """Return ranks with a GPU each, or on CPU cores if there are not enough."""
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(count, gpus if gpus >= count else 0)

    @property
    def backend(self) -> str:
        """Return the backend of torch.distributed."""
        return 'nccl' if self.gpus >= self.count else 'gloo'

    def __str__(self) -> str:
        if self.backend == 'nccl':
            return f'{self.count} x NCCL'
        where = f'{self.gpus} GPU(s)' if self.gpus else 'CPU'
        return f'{self.count} x gloo, {where}'

    def run(self, function: Callable, *args: Any) -> list:
        """Run ``function(*args)`` on each rank and return what each rank returns.

        Args:
            function: Function of a module; it is pickled by name.
            args: Its arguments.

        Raises:
            ProcessRaisedException: If a rank fails; the message holds its traceback.
                The other ranks, which may wait for it, are ended.
            ProcessExitedException: If a rank ends without an exception.
        """
        # Two ranks on two cores: threads of one would take the other's core.
        os.environ.setdefault('OMP_NUM_THREADS', '1')
        # Importing MMEngine asks for GPUs, and CUDA does not work in a fork after that.
        method = 'spawn' if self.gpus else 'forkserver'
        if not self.gpus:
            mp.get_context(method).set_forkserver_preload(PRELOAD)
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(
                _rank, (self, folder, function, args), self.count, start_method=method
            )
            return [
                torch.load(Path(folder, f'{rank}.result'), weights_only=False)
                for rank in range(self.count)
            ]


def _rank(
    rank: int, ranks: Ranks, folder: str, function: Callable, args: Sequence
) -> None:
    # Only the report goes to stdout; loggers and libraries write there, too.
    os.dup2(2, 1)
    gpu = rank % ranks.gpus if ranks.gpus else None
    # MMEngine takes it for the index of this rank's GPU.
    os.environ['LOCAL_RANK'] = str(rank if gpu is None else gpu)
    # Otherwise MMEngine logs the initialization of every weight.
    MMLogger.get_current_instance().setLevel('WARNING')
    warnings.filterwarnings('ignore', category=FutureWarning)
    if gpu is None:
        torch.set_num_threads(1)
    else:
        torch.cuda.init()
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        ranks.backend,
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=ranks.count,
        timeout=datetime.timedelta(minutes=10),
    )
    torch.save(function(*args), Path(folder, f'{rank}.result'))
    # See tests/ranks.py.
    time.sleep(0.02)
    dist.destroy_process_group()


def rank_device() -> torch.device:
    """Return the GPU that this rank was given, else the CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')
