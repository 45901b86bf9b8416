"""torchrun for runs that a scheduler may stop; sourced scripts start it.

    python tools/torchrun.py [options of torchrun] SCRIPT [ARGUMENTS]

On SIGTERM or SIGUSR1 the ranks get the signal and time to save a checkpoint. If they
did, the exit status is 75, and torchrun does not restart them.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException

PREEMPTED = os.EX_TEMPFAIL
PREEMPTED_FILE = 'AGVM_PREEMPTED_FILE'
"""As in ``agvm_mm.cli``: the ranks create the file of this environment variable."""

GRACE = 300
"""Seconds from a signal until the ranks are killed. Old releases of torch: 30."""


def stop(number: int, _: object) -> None:
    """Handle a signal as torchrun handles SIGTERM."""
    raise SignalException(f'got signal {number}', signal.Signals(number))


def main(argv: Sequence[str]) -> int:
    """Run torchrun and return the exit status."""
    if '--shutdown-timeout' in run.get_args_parser().format_help():
        argv = ['--shutdown-timeout', str(GRACE), *argv]
    # The agent's store has addresses of dead ranks after a restart (pytorch#135712).
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    signal.signal(signal.SIGUSR1, stop)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'preempted')
        os.environ[PREEMPTED_FILE] = str(file)
        try:
            run.main(argv)
        except SignalException as error:
            return PREEMPTED if file.exists() else 128 + error.sigval
        return PREEMPTED if file.exists() else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
