"""Nodes that meet, and what is said when they cannot."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import rendezvous  # noqa: E402


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    'settings, message',
    [
        (('two', '0', '29500'), "NNODES must be a number at least 1, got 'two'"),
        (('2', '-1', '29500'), "NODE_RANK must be a number at least 0, got '-1'"),
        (('2', '0', '70000'), "PORT must be a number from 1 to 65535, got '70000'"),
        (('2', '2', '29500'), 'numbered from 0 to 1'),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(rendezvous.RendezvousError, match=message):
        rendezvous.check_settings(*settings)


def test_a_free_port_is_fine():
    assert rendezvous.check_settings('2', '1', '29500') == (2, 1, 29500)
    assert rendezvous.check_node_0(2, '127.0.0.1', free_port()) is None


def test_a_taken_port_is_said(listener):
    expected = rf'port {listener} of this machine is taken .* choose another PORT'
    with pytest.raises(rendezvous.RendezvousError, match=expected):
        rendezvous.check_node_0(1, '127.0.0.1', listener)


def test_node_0_that_is_not_the_master_is_warned():
    # An address set aside for documentation: no machine has it.
    warning = rendezvous.check_node_0(2, '192.0.2.1', free_port())
    assert 'MASTER_ADDR=192.0.2.1 is no address of this machine' in warning
    assert 'NODE_RANK' in warning


def test_an_unknown_name_is_said():
    expected = 'MASTER_ADDR=node0.invalid cannot be resolved.*Check its spelling'
    with pytest.raises(rendezvous.RendezvousError, match=expected):
        rendezvous.wait_for_node_0('node0.invalid', 29500, seconds=9, report=print)


def test_node_0_that_listens_is_found(listener):
    messages = []
    rendezvous.wait_for_node_0('127.0.0.1', listener, seconds=0, report=messages.append)
    assert not messages


def test_node_0_that_does_not_listen(monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(rendezvous.time, 'monotonic', lambda: next(clock))
    monkeypatch.setattr(rendezvous.time, 'sleep', lambda seconds: None)
    messages = []
    expected = 'gave up after 90 s: .*Check that node 0 has been started'
    with pytest.raises(rendezvous.RendezvousError, match=expected):
        rendezvous.wait_for_node_0(
            '127.0.0.1', free_port(), seconds=90, report=messages.append
        )
    assert [text.split(':')[0] for text in messages] == [
        'waiting for node 0 (12 of 90 s)',
        'waiting for node 0 (72 of 90 s)',
    ]
    assert 'is this machine itself: set it to node 0' in messages[0]


def test_an_address_that_does_not_answer():
    text = rendezvous.explain(TimeoutError('timed out'), '10.0.0.1', 29500)
    assert 'MASTER_ADDR=10.0.0.1 PORT=29500 cannot be reached' in text
    assert 'firewall' in text and 'itself' not in text


# One rank of two "nodes": both count themselves and say what they have found.
SCRIPT = """
import sys
import torch
import torch.distributed as dist
dist.init_process_group('gloo')
ranks = torch.ones(())
dist.all_reduce(ranks)
print('ranks', int(ranks), 'rank', dist.get_rank(), *sys.argv[1:])
dist.destroy_process_group()
"""


@pytest.fixture
def tools(tmp_path):
    """The launcher's scripts with a train.py of their own beside them."""
    for name in ('dist_train.sh', 'torchrun.sh', 'rendezvous.py'):
        (tmp_path / name).write_bytes((ROOT / 'tools' / name).read_bytes())
    (tmp_path / 'dist_train.sh').chmod(0o755)
    (tmp_path / 'train.py').write_text(SCRIPT)
    return tmp_path


def start_node(tools, **variables):
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1')
    environment.update(variables)
    return subprocess.Popen(
        [tools / 'dist_train.sh', 'a config.py', '1', '--work-dir', 'a folder'],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_nodes(tools):
    common = dict(NNODES='2', MASTER_ADDR='127.0.0.1', PORT=str(free_port()))
    # The second first: it has to wait.
    nodes = [
        start_node(tools, NODE_RANK=str(rank), **common) for rank in reversed(range(2))
    ]
    outputs = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    arguments = 'a config.py --launcher pytorch --work-dir a folder'
    found = [[line for line in out.splitlines() if line] for out, _ in outputs]
    assert found == [[f'ranks 2 rank {rank} {arguments}'] for rank in (1, 0)]
    assert 'node 0 of 2 starts; the others have ten minutes' in outputs[1][1]


def test_a_taken_port_stops_the_launcher(tools, listener):
    node = start_node(tools, PORT=str(listener))
    out, err = node.communicate(timeout=60)
    assert node.returncode == 1
    assert not out
    (line,) = err.splitlines()
    assert line.startswith(f'rendezvous: port {listener} of this machine is taken')


def test_an_absent_node_0_stops_the_launcher(tools):
    settings = dict(NNODES='2', NODE_RANK='1', PORT=str(free_port()))
    node = start_node(tools, RENDEZVOUS_TIMEOUT='0.2', **settings)
    _, err = node.communicate(timeout=60)
    assert node.returncode == 1
    assert 'Check that node 0 has been started' in err
