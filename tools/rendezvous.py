"""Check that the nodes of a distributed run can meet, before torchrun waits for it.

    python tools/rendezvous.py NNODES NODE_RANK MASTER_ADDR PORT

Node 0 checks that the port is free. Every other node waits until node 0 listens. A
problem is reported in one line that says what to check, where torchrun shows a stack
trace or, if a node cannot be reached, nothing for ten minutes. Standard library only.
"""

import argparse
import errno
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
    for name, value, low, high in (
        ('NNODES', nnodes, 1, None),
        ('NODE_RANK', node_rank, 0, None),
        ('PORT', port, 1, 65535),
    ):
        number = int(value) if value.isdecimal() else -1
        if number < low or (high and number > high):
            limits = f'from {low} to {high}' if high else f'at least {low}'
            raise RendezvousError(f'{name} must be a number {limits}, got {value!r}')
        numbers.append(number)
    if numbers[1] >= numbers[0]:
        raise RendezvousError(
            f'NODE_RANK={node_rank} with NNODES={nnodes}: the nodes are numbered from '
            f'0 to {numbers[0] - 1}'
        )
    return tuple(numbers)


def resolve(address: str, port: int) -> list[tuple]:
    """Return the stream addresses of a host, in the form of ``socket.getaddrinfo``.

    Raises:
        RendezvousError: If the name is not known.
    """
    try:
        return socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RendezvousError(
            f'MASTER_ADDR={address} cannot be resolved on this machine ({error}). '
            'Check its spelling, or give the IP address of node 0 instead'
        ) from error


def check_node_0(nnodes: int, address: str, port: int) -> None:
    """Check on node 0 that it can listen at the address that the others use.

    Report a problem that may not matter.

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
    except OSError as error:
        same = ' and the same on all nodes' if nnodes > 1 else ''
        if error.errno == errno.EACCES:
            raise RendezvousError(
                f'port {port} may only be used by root: choose a PORT above 1023{same}'
            ) from error
        raise RendezvousError(
            f'port {port} of this machine is taken ({error.strerror}), perhaps by an '
            f'earlier run: `ss -ltnp "sport = :{port}"` shows by what. Stop that, or '
            f'choose another PORT{same}'
        ) from error
    if nnodes > 1 and not is_own_address(address, port):
        report(
            f'MASTER_ADDR={address} is not an address of this machine ('
            f'{socket.gethostname()}), but NODE_RANK is 0 here. If the start does not '
            'continue, check that NODE_RANK differs on every node and that '
            'MASTER_ADDR is node 0'
        )


def is_own_address(address: str, port: int) -> bool:
    """Return whether a host name or address belongs to this machine."""
    for family, *_, target in resolve(address, port):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((target[0], 0))
                return True
            except OSError:
                pass
    return False


def wait_for_node_0(address: str, port: int, seconds: float) -> None:
    """Wait on another node until node 0 listens, at most so many seconds.

    Report it after 10 seconds, and then every minute.

    Raises:
        RendezvousError: If node 0 did not listen in time.
    """
    start = time.monotonic()
    next_report = 10
    resolve(address, port)  # an unknown name is an error at once
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError as error:
            problem = explain(error, address, port)
        waited = time.monotonic() - start
        if waited >= seconds:
            raise RendezvousError(f'gave up after {waited:.0f} s: {problem}')
        if waited >= next_report:
            report(f'waiting for node 0 ({waited:.0f} of {seconds:g} s): {problem}')
            next_report += 60
        time.sleep(min(1, seconds - waited))


def explain(error: OSError, address: str, port: int) -> str:
    """Return what to check when node 0 could not be reached."""
    check = (
        'MASTER_ADDR is an address of node 0 in the network that the nodes share, and '
        'that no firewall blocks the port'
    )
    if isinstance(error, ConnectionRefusedError):
        check = 'node 0 has been started, with the same PORT, and that MASTER_ADDR is '
        check += 'node 0'
    text = f'MASTER_ADDR={address} PORT={port} cannot be reached ({error}). Check that '
    text += check
    if address in ('localhost', '::1') or address.startswith('127.'):
        text += '. This MASTER_ADDR is this machine itself: set it to node 0'
    return text


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
    address = args.master_addr
    try:
        nnodes, node_rank, port = check_settings(args.nnodes, args.node_rank, args.port)
        if node_rank > 0:
            seconds = float(os.environ.get('RENDEZVOUS_TIMEOUT', WAIT))
            wait_for_node_0(address, port, seconds)
            return
        check_node_0(nnodes, address, port)
    except RendezvousError as error:
        report(error)
        sys.exit(1)
    if nnodes > 1:
        report(
            f'node 0 of {nnodes} starts; the others have ten minutes to join with '
            f'MASTER_ADDR={address} PORT={port} NNODES={nnodes} and NODE_RANK 1 to '
            f'{nnodes - 1}'
        )


if __name__ == '__main__':
    main()
