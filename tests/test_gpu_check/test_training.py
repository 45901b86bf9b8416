"""Mixed-precision training of the digits detector, in bfloat16 on CPU ranks.

MMEngine's AmpOptimWrapper requires an accelerator. This check is patched here, and
torch's scaler for CPUs is used.
"""

import math
from unittest import mock

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper

from demo import write_digits
from gpu_check import training
from gpu_check.ranks import Ranks

pytestmark = pytest.mark.evidence

UPDATES = 3


def train_on_cpu(data, work_dir, loss_scale):
    """Train on this rank."""
    with (
        mock.patch.object(amp_optimizer_wrapper, 'is_cuda_available', lambda: True),
        mock.patch.object(
            amp_optimizer_wrapper,
            'GradScaler',
            lambda **settings: torch.amp.GradScaler('cpu', **settings),
        ),
    ):
        return training.train_digits(data, work_dir, 'bfloat16', loss_scale)


@pytest.mark.skipif(
    not hasattr(torch.amp, 'GradScaler'),
    reason='before 2.3 torch scales losses on GPUs only',
)
@pytest.mark.parametrize('ranks', [1, 2])
def test_digits_train_in_bfloat16_through_an_overflow(tmp_path, ranks):
    data = f'{tmp_path}/digits/'
    images = UPDATES * training.total_images(ranks)
    write_digits(data, num_train=images, num_val=1, progress=False)
    # The first loss times this scale is infinite.
    first = 2.0**127
    scale = dict(init_scale=first, backoff_factor=2.0**-100, growth_interval=2)
    by_rank = Ranks(ranks, 0).run(train_on_cpu, data, str(tmp_path), scale)
    for records in by_rank:
        assert not training.judge_training(records, UPDATES, first)
        assert [record['scale'] for record in records] == [2.0**27, 2.0**27, 2.0**28]
        assert [record['skipped'] for record in records] == [1, 1, 1]
        assert records[0]['variances'] == {}
        assert set(records[2]['variances']) == {
            'backbone',
            'neck',
            'rpn_head',
            'bbox_head',
        }
        assert records[2]['variances'] == by_rank[0][2]['variances']


def records(**changes):
    """Return the records of two good updates, the second one changed."""
    good = dict(loss=3.0, variances=dict(backbone=0.4), scale=1024.0, skipped=0)
    return [dict(good), good | changes]


def test_training_without_faults_is_right():
    assert not training.judge_training(records(), 2, 1024.0)
    assert not training.judge_training(records(scale=2048.0), 2, 1024.0)
    assert not training.judge_training(records(scale=512.0, skipped=1), 2, 1024.0)


@pytest.mark.parametrize(
    'changes, problem',
    [
        (dict(loss=math.nan), 'update 1: loss or Phi is not finite'),
        (dict(variances=dict(backbone=math.inf)), 'update 1: loss or Phi is not fin'),
        (dict(scale=512.0), 'the loss scale fell at 1 updates, but 0 measurements'),
        (dict(skipped=1), 'the loss scale fell at 0 updates, but 1 measurements'),
    ],
)
def test_faults_of_a_training_are_found(changes, problem):
    (found,) = training.judge_training(records(**changes), 2, 1024.0)
    assert found.startswith(problem)


def test_missing_updates_and_measurements_are_found():
    assert training.judge_training(records()[:1], 2, 1024.0) == [
        '1 updates instead of 2'
    ]
    skipped = [dict(record, scale=512.0, skipped=1) for record in records()[:1]]
    assert training.judge_training(skipped, 1, 1024.0) == [
        'no measurement could be used'
    ]
