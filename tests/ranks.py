"""Runs a function on several gloo ranks of this machine."""

import datetime
import os
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# A server that has imported what every rank needs, and forks ranks from there: a rank
# starts in a fraction of a second instead of five.
CONTEXT = mp.get_context('forkserver')
CONTEXT.set_forkserver_preload(['torch', 'mmengine.runner', 'agvm_mm', 'runners'])


def run_on_ranks(
    function, ranks: int, *args, timeout: float = 120, check: bool = True
) -> list:
    """Run ``function(*args)`` on each of several ranks and return what they return.

    Args:
        function (callable): A function of a module (it is pickled by name).
        ranks (int): Number of processes.
        args: Its arguments.
        timeout (float): Seconds that a collective may wait. Defaults to 120.
        check (bool): Whether all ranks must succeed; otherwise the traceback or the
            exit status of each is returned instead. Defaults to True.

    Raises:
        AssertionError: If a rank raises; the message holds the ranks' tracebacks.
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


def _rank(function, rank: int, ranks: int, folder: str, timeout: float, args) -> None:
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
        # In old releases of torch the group's end holds the GIL while it waits for
        # threads of gloo, which may need it to let go of the last update's callbacks.
        time.sleep(0.02)
        dist.destroy_process_group()
    except Exception:
        Path(folder, f'{rank}.error').write_text(
            f'rank {rank}:\n{traceback.format_exc()}'
        )
        raise SystemExit(1) from None
