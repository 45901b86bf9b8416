"""Digits configs agree with their names; those of a model differ in the method."""

from cases import for_each
from twins import METHODS, TWINS, variance_hooks
from zoo import epoch_of, load, name_of, source_of


def test_every_model_has_its_methods():
    found = {}
    for twin in TWINS:
        found.setdefault(name_of(twin).model, set()).add(name_of(twin).method)
    assert found == {model: set(names.split()) for model, names in METHODS.items()}


@for_each(TWINS)
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


@for_each(METHODS)
def test_configs_of_a_model_differ_in_method_only(model):
    def rest(twin):
        kept = load(twin).to_dict()
        del kept['optim_wrapper']
        kept['default_hooks'].pop('agvm', None)
        return kept

    first, *others = (twin for twin in TWINS if name_of(twin).model == model)
    assert all(rest(other) == rest(first) for other in others)


@for_each([twin for twin in TWINS if '_agvm-' in twin])
def test_agvm_has_the_optimizer_of_its_baseline(twin):
    with_agvm = load(twin).optim_wrapper
    without = load(twin.replace('_agvm-', '_')).optim_wrapper
    for key in ('optimizer', 'clip_grad'):
        assert with_agvm.get(key) == without.get(key)


@for_each(TWINS)
def test_leaves_are_short(twin):
    assert len(source_of(twin).splitlines()) <= 17
