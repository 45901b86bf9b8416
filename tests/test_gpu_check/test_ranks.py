"""Where ranks run; machines with GPUs are simulated."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from gpu_check import ranks as module
from gpu_check.ranks import Ranks

pytestmark = pytest.mark.evidence


@pytest.mark.parametrize(
    'ranks, method, expected',
    [
        (Ranks(2, 2), 'spawn', [('nccl', 0), ('nccl', 1)]),
        (Ranks(1, 2), 'spawn', [('nccl', 0)]),
        (Ranks(3, 2), 'spawn', [('gloo', 0), ('gloo', 1), ('gloo', 0)]),
        (Ranks(2, 0), 'forkserver', [('gloo', None)] * 2),
    ],
)
def test_ranks_get_a_gpu_each_with_nccl_or_share_them_over_gloo(
    monkeypatch, tmp_path, ranks, method, expected
):
    placed, selected = [], []
    monkeypatch.setenv('LOCAL_RANK', '')
    monkeypatch.setattr(module.os, 'dup2', lambda *files: None)
    monkeypatch.setattr(torch, 'set_num_threads', lambda count: selected.append(None))
    monkeypatch.setattr(torch.cuda, 'init', lambda: None)
    monkeypatch.setattr(torch.cuda, 'set_device', selected.append)
    monkeypatch.setattr(
        dist, 'init_process_group', lambda backend, **_: placed.append(backend)
    )
    monkeypatch.setattr(dist, 'destroy_process_group', lambda: None)

    def start(function, args, count, start_method):
        """Run the ranks one after the other in this process."""
        assert start_method == method
        for rank in range(count):
            function(rank, *args)

    monkeypatch.setattr(module.mp, 'start_processes', start)
    local_ranks = ranks.run(local_rank)
    assert list(zip(placed, selected, strict=True)) == expected
    # MMEngine takes it for the index of the GPU.
    assert local_ranks == [
        str(rank if gpu is None else gpu) for rank, (_, gpu) in enumerate(expected)
    ]


@pytest.mark.parametrize(
    'count, gpus, used', [(2, 2, 2), (1, 2, 2), (3, 2, 0), (2, 0, 0)]
)
def test_ranks_of_benchmarks_have_own_gpus_or_none(monkeypatch, count, gpus, used):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    assert Ranks.with_own_gpus(count) == Ranks(count, used)


def local_rank():
    return os.environ['LOCAL_RANK']


def facts():
    return dist.get_rank(), dist.get_world_size(), dist.get_backend()


def fail_on_second():
    if dist.get_rank() == 1:
        raise ValueError('the second rank is broken')
    time.sleep(300)


def test_each_rank_returns_its_result():
    assert Ranks(2, 0).run(facts) == [(0, 2, 'gloo'), (1, 2, 'gloo')]


def test_failure_of_a_rank_is_raised_and_the_others_are_ended():
    with pytest.raises(Exception, match=r'Process 1(?s:.)*second rank is broken'):
        Ranks(2, 0).run(fail_on_second)
