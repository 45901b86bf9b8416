"""Where ranks run; machines with GPUs are simulated."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger

from gpu_check import ranks

pytestmark = pytest.mark.evidence


class Process:
    """Stand-in for a process that returns where its rank would run."""

    exitcode = 0

    def __init__(self, target, args, kwargs):
        self.rank, self.folder = args[1], args[3]
        self.placement = kwargs['backend'], kwargs['gpu']

    def start(self):
        torch.save(self.placement, f'{self.folder}/{self.rank}.result')


class Context:
    """Stand-in for a context of multiprocessing."""

    Process = Process

    def __init__(self, method):
        self.method = method

    def set_forkserver_preload(self, modules):
        assert self.method == 'forkserver'


@pytest.mark.parametrize(
    'gpus, count, share, method, expected',
    [
        (2, 2, True, 'spawn', [('nccl', 0), ('nccl', 1)]),
        (2, 1, False, 'spawn', [('nccl', 0)]),
        (2, 3, True, 'spawn', [('gloo', 0), ('gloo', 1), ('gloo', 0)]),
        # As in the benchmarks.
        (2, 3, False, 'forkserver', [('gloo', None)] * 3),
        (0, 2, True, 'forkserver', [('gloo', None)] * 2),
    ],
)
def test_ranks_get_a_gpu_each_with_nccl_or_share_them_over_gloo(
    monkeypatch, gpus, count, share, method, expected
):
    methods = []

    def get_context(name):
        methods.append(name)
        return Context(name)

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(ranks.mp, 'get_context', get_context)
    assert ranks.run_on_ranks(print, count, share_gpus=share) == expected
    assert methods == [method]


def local_rank():
    return os.environ['LOCAL_RANK']


def test_mmengine_finds_the_gpu_that_a_rank_shares(monkeypatch, tmp_path):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    monkeypatch.setenv('LOCAL_RANK', '')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    for module, name in (
        (torch.cuda, 'init'),
        (torch.cuda, 'set_device'),
        (dist, 'init_process_group'),
        (dist, 'destroy_process_group'),
    ):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: None)
    # A new logger looks for the GPU of its rank.
    monkeypatch.setattr(MMLogger, '_instance_dict', type(MMLogger._instance_dict)())
    ranks._rank(local_rank, 1, 2, str(tmp_path), (), backend='gloo', gpu=0)
    assert torch.load(tmp_path / '1.result') == '0'


def facts():
    return dist.get_rank(), dist.get_world_size(), dist.get_backend()


def fail_on_second():
    if dist.get_rank() == 1:
        raise ValueError('the second rank is broken')
    time.sleep(300)


def test_each_rank_returns_its_result():
    assert ranks.run_on_ranks(facts, 2) == [(0, 2, 'gloo'), (1, 2, 'gloo')]


def test_failure_of_a_rank_is_raised_and_the_others_are_ended(monkeypatch):
    monkeypatch.setattr(ranks, 'GRACE', 0.1)
    with pytest.raises(RuntimeError, match=r'rank 1:\n(?s:.)*second rank is broken'):
        ranks.run_on_ranks(fail_on_second, 2)
