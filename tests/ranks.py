"""Functions run on several local gloo ranks."""

import datetime
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a server that has imported what they need, also what torch's
# optimizers and MMEngine's visualizers import when they are built: they start in a
# fraction of a second instead of ten seconds.
CONTEXT = mp.get_context('forkserver')
CONTEXT.set_forkserver_preload(
    ['agvm_mm', 'runners', 'torch._dynamo', 'matplotlib.backends.backend_agg']
)


def run_on_ranks(
    function: Callable,
    ranks: int,
    *args: Any,
    timeout: float = 120,
    check: bool = True,
) -> list:
    """Run ``function(*args)`` on each of several ranks and return their results.

    Args:
        function: Module-level function (it is pickled by name).
        ranks: Number of processes.
        args: Arguments of the function.
        timeout: Seconds that a collective may wait. Defaults to 120.
        check: Whether all ranks must succeed. Otherwise the traceback or the exit
            status of each rank is returned instead of its result. Defaults to True.

    Raises:
        AssertionError: If a rank fails; the message contains the tracebacks.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(
                target=_rank, args=(function, rank, ranks, folder, timeout, args)
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        errors = [path.read_text() for path in sorted(Path(folder).glob('*.error'))]
        if not check:
            return [
                path.read_text() if path.exists() else process.exitcode
                for rank, process in enumerate(processes)
                for path in [Path(folder, f'{rank}.error')]
            ]
        assert not errors, '\n'.join(errors)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * ranks, f'exit codes {codes}'
        return [
            torch.load(Path(folder, f'{rank}.result'), weights_only=False)
            for rank in range(ranks)
        ]


def _rank(
    function: Callable, rank: int, ranks: int, folder: str, timeout: float, args: tuple
) -> None:
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)  # MMEngine reads it.
    try:
        dist.init_process_group(
            'gloo',
            init_method=f'file://{folder}/rendezvous',
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=timeout),
        )
        torch.save(function(*args), Path(folder, f'{rank}.result'))
        # Old releases of torch hold the GIL while destroying the group waits for gloo's
        # threads, which may need it to release the callbacks of the last update.
        time.sleep(0.02)
        dist.destroy_process_group()
    except Exception:
        Path(folder, f'{rank}.error').write_text(
            f'rank {rank}:\n{traceback.format_exc()}'
        )
        raise SystemExit(1) from None
