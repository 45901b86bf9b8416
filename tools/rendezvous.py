"""Check that the nodes of a distributed run can meet, before torchrun waits for it.

    python tools/rendezvous.py NNODES NODE_RANK MASTER_ADDR PORT

Node 0 checks that the port is free. Every other node waits until node 0 listens. A
problem is reported in one line that says what to check, where torchrun shows a stack
trace or, if a node cannot be reached, nothing for ten minutes. Standard library only.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

WAIT = 600
"""Seconds to wait for node 0, the same as torchrun's."""


class RendezvousError(Exception):
    """Reason why the nodes cannot meet; the message says what to check."""


def check_settings(nnodes: str, node_rank: str, port: str) -> tuple[int, int, int]:
    """Check the numbers on the command line, and convert them.

    Raises:
        RendezvousError: If one is not a number or is out of range.
    """
    numbers = []
    for name, value, low in (
        ('NNODES', nnodes, 1),
        ('NODE_RANK', node_rank, 0),
        ('PORT', port, 1),
    ):
        if not value.isdecimal() or int(value) < low:
            raise RendezvousError(
                f'{name} must be a number from {low} on, got {value!r}'
            )
        numbers.append(int(value))
    if numbers[1] >= numbers[0]:
        raise RendezvousError(
            f'NODE_RANK={node_rank} with NNODES={nnodes}: the nodes are numbered from '
            f'0 to {numbers[0] - 1}'
        )
    return tuple(numbers)


def check_port(port: int) -> None:
    """Check on node 0 that it can listen.

    Raises:
        RendezvousError: If the port is in use or not allowed.
    """
    try:
        with socket.socket() as probe:
            # The same option as torch's server: connections of an earlier run that
            # have not timed out yet do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(('', port))
            probe.listen()
    except (OSError, OverflowError) as error:
        raise RendezvousError(
            f'port {port} of this machine cannot be used ({error}), perhaps because of '
            f'an earlier run: `ss -ltnp "sport = :{port}"` shows by what. Stop that or '
            'choose another PORT, the same on all nodes'
        ) from error


def wait_for_node_0(address: str, port: int, seconds: float) -> None:
    """Wait on another node until node 0 listens, at most so many seconds.

    Report it after 10 seconds, and then every minute.

    Raises:
        RendezvousError: If the address is not known or node 0 did not listen in time.
    """
    try:
        socket.getaddrinfo(address, port)
    except (OSError, OverflowError) as error:
        raise RendezvousError(
            f'MASTER_ADDR={address} cannot be resolved on this machine ({error}). '
            'Check its spelling, or give the IP address of node 0 instead'
        ) from error
    start, next_report = time.monotonic(), 10
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            problem = (
                f'MASTER_ADDR={address} PORT={port} cannot be reached ({error}). Check '
                'that node 0 has been started with the same PORT, that MASTER_ADDR is '
                'its address in the network that the nodes share, and that no firewall '
                'blocks the port'
            )
        waited = time.monotonic() - start
        if waited >= seconds:
            raise RendezvousError(f'gave up after {waited:.0f} s: {problem}')
        if waited >= next_report:
            report(f'waiting for node 0 ({waited:.0f} of {seconds:g} s): {problem}')
            next_report += 60
        time.sleep(min(1, seconds - waited))


def report(message: object) -> None:
    """Print a message to stderr."""
    print(f'rendezvous: {message}.', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Check this node and, if it is not node 0, wait for node 0.

    End with status 1 and a line on stderr if the nodes cannot meet.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('nnodes', help='number of machines')
    parser.add_argument('node_rank', help='number of this machine, from 0')
    parser.add_argument('master_addr', help='host name or address of node 0')
    parser.add_argument('port', help='a free port of node 0')
    args = parser.parse_args(argv)
    try:
        nnodes, node_rank, port = check_settings(args.nnodes, args.node_rank, args.port)
        if node_rank > 0:
            seconds = float(os.environ.get('RENDEZVOUS_TIMEOUT', WAIT))
            wait_for_node_0(args.master_addr, port, seconds)
            return
        check_port(port)
    except RendezvousError as error:
        report(error)
        sys.exit(1)
    if nnodes > 1:
        report(
            f'node 0 of {nnodes} starts; the others have ten minutes to join with '
            f'MASTER_ADDR={args.master_addr} PORT={port} NNODES={nnodes} and NODE_RANK '
            f'1 to {nnodes - 1}'
        )


if __name__ == '__main__':
    main()
