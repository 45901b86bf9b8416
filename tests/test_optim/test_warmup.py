"""Exponential warm-up against its closed formula."""

import copy

import pytest
import torch
from mmengine.optim import MultiStepLR, OptimWrapper, PolyLR
from mmengine.registry import PARAM_SCHEDULERS

from agvm_mm import ExponentialWarmupLR

LRS = (0.2263, 0.02)


def make_optimizer():
    groups = [
        dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=lr, name=index)
        for index, lr in enumerate(LRS)
    ]
    return torch.optim.SGD(groups, lr=1.0)


def formula(update, warmup, start_factor=1e-3):
    """Return mmcv 1.x's ratio^(1 - t / T), computed with logarithms."""
    if update >= warmup:
        return 1.0
    exponent = torch.tensor((warmup - update) / warmup, dtype=torch.float64)
    log = torch.log(torch.tensor(start_factor, dtype=torch.float64))
    return torch.exp(log * exponent).item()


def run(optimizer, schedulers, updates):
    """Return the learning rates of both groups at each update."""
    seen = []
    for _ in range(updates):
        seen.append([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return seen


def assert_equal(seen, expected):
    for update, (now, factor) in enumerate(zip(seen, expected, strict=True)):
        for lr, base in zip(now, LRS, strict=True):
            assert lr == pytest.approx(base * factor, rel=1e-12), update


@pytest.mark.parametrize('warmup', [1, 2, 27, 460, 920, 12_632])
def test_equals_the_formula_at_every_update(warmup):
    optimizer = make_optimizer()
    scheduler = ExponentialWarmupLR(optimizer, begin=0, end=warmup, by_epoch=False)
    seen = run(optimizer, [scheduler], warmup + 5)
    assert_equal(seen, [formula(t, warmup) for t in range(warmup + 5)])


def test_begin_and_start_factor_are_used():
    optimizer = make_optimizer()
    scheduler = ExponentialWarmupLR(optimizer, 0.1, begin=3, end=8, by_epoch=False)
    seen = run(optimizer, [scheduler], 10)
    # Before `begin` the learning rate is unchanged, as with MMEngine's schedulers.
    assert_equal(seen, [1] * 3 + [formula(t, 5, 0.1) for t in range(7)])


def decayed(update, warmup, milestones):
    return formula(update, warmup) * 0.1 ** sum(update >= m for m in milestones)


@pytest.mark.parametrize('first', ['warm-up', 'steps'])
@pytest.mark.parametrize('milestones', [[60, 70], [20, 70]])
def test_combines_with_lr_steps(first, milestones):
    """The order does not matter, and a step may be inside the warm-up."""
    optimizer = make_optimizer()
    builders = [
        lambda: ExponentialWarmupLR(optimizer, begin=0, end=40, by_epoch=False),
        lambda: MultiStepLR(optimizer, milestones=milestones, by_epoch=False),
    ]
    schedulers = [build() for build in builders[:: 1 if first == 'warm-up' else -1]]
    seen = run(optimizer, schedulers, 80)
    assert_equal(seen, [decayed(t, 40, milestones) for t in range(80)])


def test_polynomial_may_begin_where_warmup_ends():
    optimizer = make_optimizer()
    schedulers = [
        ExponentialWarmupLR(optimizer, begin=0, end=10, by_epoch=False),
        PolyLR(optimizer, power=0.9, begin=10, end=110, by_epoch=False),
    ]
    seen = run(optimizer, schedulers, 110)
    assert_equal(seen[:11], [formula(t, 10) for t in range(11)])
    # MMEngine's polynomial ends at step `end` - 1.
    expected = [(1 - (t - 10) / 99) ** 0.9 for t in range(11, 110)]
    for (lr, _), factor in zip(seen[11:], expected, strict=True):
        assert lr == pytest.approx(LRS[0] * factor, rel=1e-9)


@pytest.mark.parametrize('stop', [0, 1, 23, 40, 41, 65])
def test_resumed_warmup_is_bit_identical(stop):
    def build():
        optimizer = make_optimizer()
        wrapper = OptimWrapper(optimizer)
        warmup = ExponentialWarmupLR(wrapper, begin=0, end=40, by_epoch=False)
        steps = MultiStepLR(wrapper, milestones=[60, 70], by_epoch=False)
        return wrapper, [warmup, steps]

    wrapper, schedulers = build()
    whole = run(wrapper, schedulers, 80)

    wrapper, schedulers = build()
    seen = run(wrapper, schedulers, stop)
    saved = copy.deepcopy(
        (wrapper.state_dict(), [scheduler.state_dict() for scheduler in schedulers])
    )
    wrapper, schedulers = build()
    wrapper.load_state_dict(saved[0])
    for scheduler, state in zip(schedulers, saved[1], strict=True):
        scheduler.load_state_dict(state)
    assert seen + run(wrapper, schedulers, 80 - stop) == whole


def test_epochs_in_config_are_converted_to_updates():
    optimizer = make_optimizer()
    scheduler = PARAM_SCHEDULERS.build(
        dict(
            type='ExponentialWarmupLR',
            begin=0,
            end=2,
            by_epoch=True,
            convert_to_iter_based=True,
        ),
        default_args=dict(optimizer=optimizer, epoch_length=12),
    )
    assert scheduler.by_epoch is False
    seen = run(optimizer, [scheduler], 30)
    assert_equal(seen, [formula(t, 24) for t in range(30)])


def test_epochs_without_conversion_step_by_epoch():
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='ExponentialWarmupLR', end=3),
        default_args=dict(optimizer=make_optimizer(), epoch_length=12),
    )
    assert scheduler.by_epoch is True
    assert scheduler.get_last_value()[0] == pytest.approx(LRS[0] * 1e-3)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(end=0), 'end must be after begin=0'),
        (dict(begin=5, end=4), 'end must be after begin=5'),
        (dict(end=4, start_factor=0), 'start_factor must be more than 0'),
        (dict(end=4, start_factor=1.1), 'at most 1'),
    ],
)
def test_settings_out_of_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ExponentialWarmupLR(make_optimizer(), **kwargs)


def test_impossible_conversion_is_refused():
    build = ExponentialWarmupLR.build_iter_from_epoch
    with pytest.raises(ValueError, match='by_epoch=True'):
        build(make_optimizer(), end=2, by_epoch=False, epoch_length=10)
    with pytest.raises(ValueError, match='epoch_length must be positive'):
        build(make_optimizer(), end=2)
