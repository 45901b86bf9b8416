"""Nodes that meet, and messages when they cannot."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import ROOT, load_script

rendezvous = load_script('rendezvous.py')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture
def listener() -> Iterator[int]:
    """Return a port that is in use."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    'settings, message',
    [
        (('two', '0', '29500'), "NNODES must be a number from 1 on, got 'two'"),
        (('2', '-1', '29500'), "NODE_RANK must be a number from 0 on, got '-1'"),
        (('2', '0', '0'), "PORT must be a number from 1 on, got '0'"),
        (('2', '2', '29500'), 'numbered from 0 to 1'),
    ],
)
def test_wrong_settings_are_rejected(settings: tuple[str, ...], message: str):
    with pytest.raises(rendezvous.RendezvousError, match=message):
        rendezvous.check_settings(*settings)


def test_free_port_is_accepted():
    assert rendezvous.check_settings('2', '1', '29500') == (2, 1, 29500)
    rendezvous.check_port(free_port())


def test_used_port_is_rejected(listener: int):
    expected = rf'port {listener} of this machine cannot be used .* another PORT'
    with pytest.raises(rendezvous.RendezvousError, match=expected):
        rendezvous.check_port(listener)
    with pytest.raises(rendezvous.RendezvousError, match='port 70000 .* must be 0-655'):
        rendezvous.check_port(70000)


def test_unknown_host_name_is_rejected():
    expected = 'MASTER_ADDR=node0.invalid cannot be resolved.*Check its spelling'
    with pytest.raises(rendezvous.RendezvousError, match=expected):
        rendezvous.wait_for_node_0('node0.invalid', 29500, seconds=9)


def test_node_0_that_listens_is_found(listener: int, capsys: pytest.CaptureFixture):
    rendezvous.wait_for_node_0('127.0.0.1', listener, seconds=0)
    assert not capsys.readouterr().err


def test_wait_for_node_0_reports_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    expected = 'gave up after 90 s: .*Check that node 0 has been started'
    with pytest.raises(rendezvous.RendezvousError, match=expected):
        rendezvous.wait_for_node_0('127.0.0.1', free_port(), seconds=90)
    messages = capsys.readouterr().err.splitlines()
    assert [text.split(': ')[:2] for text in messages] == [
        ['rendezvous', 'waiting for node 0 (12 of 90 s)'],
        ['rendezvous', 'waiting for node 0 (72 of 90 s)'],
    ]
    assert 'firewall' in messages[0]


# One rank of two "nodes": both count the ranks and print the number.
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
def tools(tmp_path: Path) -> Path:
    """Return a folder with the launcher's scripts and the train.py above."""
    for name in ('dist_train.sh', 'torchrun.sh', 'torchrun.py', 'rendezvous.py'):
        (tmp_path / name).write_bytes((ROOT / 'tools' / name).read_bytes())
    (tmp_path / 'dist_train.sh').chmod(0o755)
    (tmp_path / 'train.py').write_text(SCRIPT)
    return tmp_path


def start_node(tools: Path, **variables: str) -> subprocess.Popen:
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1')
    environment.update(variables)
    return subprocess.Popen(
        [tools / 'dist_train.sh', 'a config.py', '1', '--work-dir', 'a folder'],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_nodes_meet(tools: Path):
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


def test_used_port_stops_the_launcher(tools: Path, listener: int):
    node = start_node(tools, PORT=str(listener))
    out, err = node.communicate(timeout=60)
    assert node.returncode == 1
    assert not out
    (line,) = err.splitlines()
    assert line.startswith(f'rendezvous: port {listener} of this machine cannot')


def test_missing_node_0_stops_the_launcher(tools: Path):
    settings = dict(NNODES='2', NODE_RANK='1', PORT=str(free_port()))
    node = start_node(tools, RENDEZVOUS_TIMEOUT='0.2', **settings)
    _, err = node.communicate(timeout=60)
    assert node.returncode == 1
    assert 'Check that node 0 has been started' in err


def test_only_the_standard_library_is_imported():
    """The check runs before torch is imported, by any Python."""
    code = "import runpy; runpy.run_path('tools/rendezvous.py')"
    command = [sys.executable, '-I', '-S', '-c', code]
    subprocess.run(command, cwd=ROOT, check=True)
