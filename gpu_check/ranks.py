"""Functions on several ranks of this machine, on GPUs or on CPU cores."""

import datetime
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.logging import MMLogger

# Seconds until the other ranks are ended after one has failed: they may wait for it.
GRACE = 10


def on_gpus(ranks: int) -> bool:
    """Return whether each rank gets its own GPU (NCCL) or a CPU core (gloo)."""
    return torch.cuda.is_available() and torch.cuda.device_count() >= ranks


def rank_device() -> torch.device:
    """Return the GPU that this rank was given, else the CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.device('cuda', torch.cuda.current_device())
    return torch.device('cpu')


def run_on_ranks(
    function: Callable,
    ranks: int,
    *args: Any,
    preload: Sequence[str] = (),
    share_gpus: bool = False,
) -> list:
    """Run ``function(*args)`` on several ranks and return what each rank returns.

    Args:
        function: Function of a module; it is pickled by name.
        ranks: Number of processes.
        args: Arguments of the function.
        preload: Modules that take long to import. On CPU cores they are imported once
            and inherited by the ranks.
        share_gpus: Whether more ranks than GPUs take turns on the GPUs and communicate
            over gloo. NCCL accepts one rank per GPU. Defaults to False, such ranks run
            on CPU cores.

    Raises:
        RuntimeError: If a rank fails; the message holds its traceback.
    """
    # Two ranks on two cores: threads of one would take the other's core.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    gpus = torch.cuda.device_count() if on_gpus(1) else 0
    backend = 'nccl' if gpus >= ranks else 'gloo'
    used = gpus if share_gpus or gpus >= ranks else 0
    # Importing MMEngine asks for GPUs, and CUDA does not work in a fork after that.
    context = mp.get_context('spawn' if used else 'forkserver')
    if not used:
        context.set_forkserver_preload(['torch', *preload])
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_rank,
                args=(function, rank, ranks, folder, args),
                kwargs=dict(backend=backend, gpu=rank % used if used else None),
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        join(processes)
        errors = [path.read_text() for path in sorted(Path(folder).glob('*.error'))]
        codes = [process.exitcode for process in processes]
        if errors or any(codes):
            raise RuntimeError('\n'.join(errors) or f'exit codes {codes}')
        return [
            torch.load(Path(folder, f'{rank}.result'), weights_only=False)
            for rank in range(ranks)
        ]


def join(processes: Sequence[mp.Process]) -> None:
    """Wait for all ranks; end those that remain ``GRACE`` after one has failed."""
    while running := [process for process in processes if process.exitcode is None]:
        failed = any(process.exitcode for process in processes)
        sentinels = [process.sentinel for process in running]
        if not connection.wait(sentinels, timeout=GRACE if failed else None):
            for process in running:
                process.kill()
                process.join()


def _rank(
    function: Callable,
    rank: int,
    ranks: int,
    folder: str,
    args: Sequence,
    *,
    backend: str,
    gpu: int | None,
) -> None:
    try:
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
            backend,
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
