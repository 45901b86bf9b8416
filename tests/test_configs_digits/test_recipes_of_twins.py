"""Digits configs agree with their names; those of a model differ in the method."""

import pytest
from twins import METHODS, TWINS, variance_hooks
from zoo import OPTIMIZERS, epoch_of, load, name_of, source_of


def test_every_model_has_its_methods():
    found = {}
    for twin in TWINS:
        found.setdefault(name_of(twin).model, set()).add(name_of(twin).method)
    assert found == {model: set(names.split()) for model, names in METHODS.items()}


@pytest.mark.parametrize('twin', TWINS)
def test_config_agrees_with_its_name(twin):
    name, cfg = name_of(twin), load(twin)
    train = cfg.train_cfg
    assert train.total_batch_size == name.batch
    assert f'{train.max_epochs}e' == name.length
    method = name.method.removeprefix('agvm-')
    assert cfg.optim_wrapper.optimizer.type == OPTIMIZERS[method]
    assert cfg.optim_wrapper.optimizer.lr > 0
    has_agvm = name.method.startswith('agvm-')
    assert cfg.optim_wrapper.type == (
        'AGVMOptimWrapper' if has_agvm else 'OptimWrapper'
    )
    assert len(variance_hooks(twin)) == has_agvm


@pytest.mark.parametrize('twin', TWINS)
def test_schedule_fits_the_run(twin):
    cfg = load(twin)
    epochs = cfg.train_cfg.max_epochs
    warmup, steps = cfg.param_scheduler
    assert warmup.type == 'LinearLR' and not warmup.by_epoch
    assert steps.type == 'MultiStepLR' and steps.by_epoch
    assert steps.end == epochs
    first = min(steps.milestones) * epoch_of(twin)
    assert warmup.end < first and max(steps.milestones) < epochs
    for hook in variance_hooks(twin):
        # AGVM acts while the learning rate is large.
        assert warmup.end < hook.begin < first
    # The batch is made of whole micro-batches on 1, 2, 4 or 8 ranks.
    assert cfg.train_cfg.total_batch_size % (8 * cfg.train_dataloader.batch_size) == 0


@pytest.mark.parametrize('model', METHODS)
def test_configs_of_a_model_differ_in_method_only(model):
    def rest(twin):
        kept = load(twin).to_dict()
        del kept['optim_wrapper']
        kept['default_hooks'].pop('agvm', None)
        return kept

    first, *others = (twin for twin in TWINS if name_of(twin).model == model)
    assert all(rest(other) == rest(first) for other in others)


@pytest.mark.parametrize('twin', [twin for twin in TWINS if '_agvm-' in twin])
def test_agvm_has_the_optimizer_of_its_baseline(twin):
    with_agvm = load(twin).optim_wrapper
    without = load(twin.replace('_agvm-', '_')).optim_wrapper
    for key in ('optimizer', 'clip_grad'):
        assert with_agvm.get(key) == without.get(key)


@pytest.mark.parametrize('twin', TWINS)
def test_leaves_are_short(twin):
    assert len(source_of(twin).splitlines()) <= 17
