"""Learning rates by module at the step: equal to real parameter groups by module."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmengine.utils import digit_version
from runners import make_runner
from toy import ToyDetector, make_images

from agvm_mm.method.modules import assign_modules
from agvm_mm.optim.split import scaled_learning_rates

MULTIPLIERS = dict(backbone=1.0, neck=0.7, bbox_head=3.0, mask_head=1.3)
OPTIMIZERS = {
    'SGD': lambda groups: torch.optim.SGD(
        groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    'SGD fused': lambda groups: torch.optim.SGD(
        groups, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True
    ),
    'Adam amsgrad': lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True),
    'AdamW foreach': lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=True),
    'AdamW fused': lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    'AdamW, lr in a tensor': lambda groups: torch.optim.AdamW(
        groups, lr=torch.tensor(0.01, dtype=torch.float64), foreach=False
    ),
}

needs_fused = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4'),
    reason='before 2.4 torch has fused optimizers for GPUs only',
)
CASES = [
    pytest.param(name, marks=needs_fused if 'fused' in name else ())
    for name in OPTIMIZERS
]


def modules_of(model):
    parameters = dict(model.named_parameters())
    return {id(parameters[n]): module for n, module in assign_modules(model).items()}


def train(model, optimizer, step, schedule=False, updates=6):
    """Train with ``step`` and return what the scheduler leaves in each group."""
    scheduler = None
    if schedule:
        rates = [float(group['lr']) for group in optimizer.param_groups]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [10 * rate for rate in rates], total_steps=updates + 1
        )
    for update in range(updates):
        optimizer.zero_grad()
        model(*make_images(4, seed=update))['loss'].backward()
        step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize('schedule', [False, True], ids=['constant', 'OneCycleLR'])
@pytest.mark.parametrize('name', CASES)
def test_equal_to_real_groups_of_each_module(name, schedule):
    model, other = ToyDetector(), ToyDetector()
    other.load_state_dict(model.state_dict())

    optimizer = OPTIMIZERS[name](model.parameters())
    stock = copy.deepcopy(optimizer.state_dict()['param_groups'])
    module_of = modules_of(model)

    def step():
        with scaled_learning_rates(optimizer, module_of, MULTIPLIERS):
            optimizer.step()

    train(model, optimizer, step, schedule)

    parameters = dict(other.named_parameters())
    by_module = {module: [] for module in MULTIPLIERS}
    for parameter_name, module in assign_modules(other).items():
        by_module[module].append(parameters[parameter_name])
    groups = [dict(params=own) for own in by_module.values()]
    real = OPTIMIZERS[name](groups)

    def step_of_groups():
        saved = [group['lr'] for group in real.param_groups]
        for group, module in zip(real.param_groups, by_module, strict=True):
            group['lr'] = group['lr'] * MULTIPLIERS[module]
        real.step()
        for group, lr in zip(real.param_groups, saved, strict=True):
            group['lr'] = lr

    train(other, real, step_of_groups, schedule)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    found = optimizer.state_dict()['param_groups']
    assert len(found) == len(stock) == 1
    assert found[0]['params'] == stock[0]['params']
    if not schedule:
        assert found == stock


def test_multipliers_of_one_split_nothing():
    model = ToyDetector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups, ones = optimizer.param_groups, dict.fromkeys(MULTIPLIERS, 1.0)
    with scaled_learning_rates(optimizer, modules_of(model), ones):
        assert optimizer.param_groups is groups
    with scaled_learning_rates(optimizer, modules_of(model), MULTIPLIERS):
        assert [group['lr'] for group in optimizer.param_groups] == [
            0.1 * multiplier for multiplier in MULTIPLIERS.values()
        ]
    assert optimizer.param_groups is groups


def test_parameter_of_no_module_keeps_its_rate():
    model, weight = ToyDetector(), torch.nn.Parameter(torch.ones(1).double())
    optimizer = torch.optim.SGD([*model.parameters(), weight], lr=0.5)
    weight.grad = torch.ones_like(weight)
    with scaled_learning_rates(optimizer, modules_of(model), MULTIPLIERS):
        optimizer.step()
    assert weight.item() == 0.5


class CountingSGD(torch.optim.SGD):
    """SGD that keeps state in its groups."""

    key = 'steps'

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group['steps'] = group.get('steps', 0) + 1
            group['total'] = group.setdefault('total', torch.zeros(1)).add_(2)
            group['rates'] = [*group.get('rates', []), self.entry(group)]
        super().step(closure)

    def entry(self, group):
        return len(group)


class RateSGD(CountingSGD):
    """SGD whose groups remember their learning rates."""

    def entry(self, group):
        return group['lr']


def test_state_in_groups_survives():
    model = ToyDetector()
    optimizer = CountingSGD(model.parameters(), lr=0.1)
    for update in range(3):
        model(*make_images(4, seed=update))['loss'].backward()
        with scaled_learning_rates(optimizer, modules_of(model), MULTIPLIERS):
            optimizer.step()
    (group,) = optimizer.param_groups
    assert (group['steps'], group['total'].item(), len(group['rates'])) == (3, 6, 3)


class DecayingSGD(torch.optim.SGD):
    """SGD that lowers its learning rate itself."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group['lr'] *= 0.5


def test_step_that_changes_the_learning_rate_is_refused():
    model = ToyDetector()
    optimizer = DecayingSGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match='DecayingSGD changes the learning rate'):
        with scaled_learning_rates(optimizer, modules_of(model), MULTIPLIERS):
            optimizer.step()
    assert [group['lr'] for group in optimizer.param_groups] == [0.1]


def test_state_that_differs_by_learning_rate_is_refused():
    model = ToyDetector()
    optimizer = RateSGD(model.parameters(), lr=0.1)
    groups = optimizer.param_groups
    with pytest.raises(RuntimeError, match="RateSGD changes 'rates' of a parameter"):
        with scaled_learning_rates(optimizer, modules_of(model), MULTIPLIERS):
            optimizer.step()
    assert optimizer.param_groups is groups


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class BiasConstructor:
    """Constructor with groups by kind of parameter, as YOLOv5's."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.settings = dict(optim_wrapper_cfg)

    def __call__(self, model):
        named = dict(model.named_parameters())
        biases = [p for name, p in named.items() if name.endswith('bias')]
        weights = [p for name, p in named.items() if not name.endswith('bias')]
        optimizer = dict(self.settings.pop('optimizer'))
        kind = getattr(torch.optim, optimizer.pop('type'))
        groups = [dict(params=weights, weight_decay=1e-3), dict(params=biases)]
        return OPTIM_WRAPPERS.build(
            dict(self.settings, optimizer=kind(groups, **optimizer))
        )


@HOOKS.register_module(force=True)
class BiasWarmupHook(Hook):
    """Hook that warms up the second group, by its position."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weights, biases = runner.optim_wrapper.optimizer.param_groups
        assert all(p.dim() > 1 for p in weights['params'])
        assert all(p.dim() == 1 for p in biases['params'])
        biases['lr'] = 0.1 / (1 + runner.iter)
        self.seen = [weights['lr'], biases['lr']]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        groups = runner.optim_wrapper.optimizer.param_groups
        assert [group['lr'] for group in groups] == self.seen


def train_with_bias_warmup(work_dir, kind, hooks):
    runner = make_runner(
        work_dir,
        dict(
            type=kind,
            constructor='BiasConstructor',
            optimizer=dict(type='SGD', lr=0.002, momentum=0.9),
        ),
        images=48,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=2, total_batch_size=8),
        hooks=[dict(type='BiasWarmupHook'), *hooks],
    )
    runner.train()
    return runner


def test_hook_that_addresses_groups_by_position_finds_those_of_the_config(tmp_path):
    plain = train_with_bias_warmup(tmp_path / 'plain', 'OptimWrapper', [])
    late = train_with_bias_warmup(
        tmp_path / 'late',
        'AGVMOptimWrapper',
        [dict(type='VarianceSyncHook', interval=1, begin=11)],
    )
    acting = train_with_bias_warmup(
        tmp_path / 'acting',
        'AGVMOptimWrapper',
        [dict(type='VarianceSyncHook', interval=1, begin=0)],
    )
    # AGVM acts at the last update only: the anchor's weights stay those of a plain run.
    expected, found = plain.model.backbone, late.model.backbone
    for p, q in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(p, q)
    different = zip(
        expected.parameters(), acting.model.backbone.parameters(), strict=True
    )
    assert not all(torch.equal(p, q) for p, q in different)
    assert late.optim_wrapper.agvm.num_measurements == 1
    assert set(acting.optim_wrapper.agvm.multipliers.values()) != {1.0}
