"""Learning rates, counters, state and errors of AGVMOptimWrapper."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import CosineAnnealingLR
from toy import ToyDetector, make_images, make_wrapper


def run_updates(model, wrapper, updates, first=0, micro_batches=2):
    for update in range(first, first + updates):
        for micro_batch in range(micro_batches):
            images = make_images(4, seed=micro_batches * update + micro_batch)
            wrapper.update_params(model(*images)['loss'])


def make(optimizer='SGD', estimator='halves', **kwargs):
    model = ToyDetector()
    kwargs.setdefault('accumulative_counts', 2)
    return model, make_wrapper(model, optimizer, estimator=estimator, **kwargs)


def lrs(wrapper):
    return [group['lr'] for group in wrapper.optimizer.param_groups]


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_step_uses_lr_times_mu_and_restores_lr(optimizer):
    model, wrapper = make(optimizer)
    before = lrs(wrapper)
    seen = []
    wrapper.optimizer.register_step_pre_hook(lambda *_: seen.append(lrs(wrapper)))
    run_updates(model, wrapper, 5)
    assert lrs(wrapper) == before
    (lr,) = before
    expected = [lr * mu for mu in wrapper.agvm.multipliers.values()]
    assert seen[-1] == expected
    assert len(set(expected)) == 4


def test_lr_is_restored_when_the_step_raises():
    model, wrapper = make()
    run_updates(model, wrapper, 3)
    before = lrs(wrapper)

    def fail(*_):
        assert lrs(wrapper) != before
        raise OSError('out of luck')

    handle = wrapper.optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match='out of luck'):
        run_updates(model, wrapper, 1, first=3)
    assert lrs(wrapper) == before
    assert wrapper.agvm.num_updates == 3
    handle.remove()


def test_cosine_schedule_is_the_same_as_without_agvm():
    schedules = []
    for with_agvm in (True, False):
        model, wrapper = make()
        if not with_agvm:
            wrapper = OptimWrapper(
                torch.optim.SGD(model.parameters(), lr=0.05), accumulative_counts=2
            )
        scheduler = CosineAnnealingLR(wrapper, T_max=10, by_epoch=False)
        schedule = []
        for update in range(10):
            run_updates(model, wrapper, 1, first=update)
            scheduler.step()
            schedule.append(wrapper.get_lr()['lr'][0])
        schedules.append(schedule)
    assert schedules[0] == schedules[1]
    assert len(set(schedules[0])) == 10


def test_multipliers_act_from_begin_to_end_only():
    model, wrapper = make(schedule=dict(interval=1, begin=2, end=4))
    moved = []
    for update in range(7):
        run_updates(model, wrapper, 1, first=update)
        moved.append(wrapper.agvm.num_measurements)
    assert moved == [0, 0, 1, 2, 3, 3, 3]
    assert set(wrapper.agvm.multipliers.values()) == {1.0}

    model, wrapper = make(schedule=dict(interval=1, begin=2, end=4))
    steps = []
    wrapper.optimizer.register_step_pre_hook(lambda *_: steps.append(lrs(wrapper)[-1]))
    run_updates(model, wrapper, 7)
    (lr,) = lrs(wrapper)
    assert steps[:2] == [lr, lr] and steps[5:] == [lr, lr]
    assert lr not in steps[2:5]


def test_multiplier_acts_at_its_own_update():
    model, wrapper = make(schedule=dict(interval=10))
    steps = []
    wrapper.optimizer.register_step_pre_hook(lambda *_: steps.append(lrs(wrapper)[-1]))
    run_updates(model, wrapper, 1)
    (lr,) = lrs(wrapper)
    assert steps == [lr * wrapper.agvm.multipliers['mask_head']]
    assert steps != [lr]


def test_measurement_comes_before_clipping():
    variances = []
    for clip_grad in (None, dict(max_norm=1e-3)):
        model, wrapper = make(clip_grad=clip_grad)
        run_updates(model, wrapper, 1)
        variances.append(wrapper.agvm.variances)
    assert variances[0] == variances[1]


def test_updates_are_counted_not_micro_batches():
    model, wrapper = make(accumulative_counts=4, schedule=dict(interval=2))
    run_updates(model, wrapper, 6, micro_batches=4)
    assert (wrapper.agvm.num_updates, wrapper.agvm.num_measurements) == (6, 3)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_non_finite_measurement_does_not_change_multipliers(bad, estimator):
    model, wrapper = make(estimator=estimator)
    run_updates(model, wrapper, 2)
    multipliers, variances = wrapper.agvm.multipliers, wrapper.agvm.variances
    wrapper.update_params(model(*make_images(4))['loss'] * bad)
    wrapper.update_params(model(*make_images(4))['loss'])
    assert wrapper.agvm.multipliers == multipliers
    assert wrapper.agvm.variances == variances
    assert (wrapper.agvm.num_measurements, wrapper.agvm.num_skipped_measurements) == (
        2,
        1,
    )


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_saved_and_loaded_training_is_exact(optimizer, estimator, tmp_path):
    model, wrapper = make(optimizer, estimator, schedule=dict(interval=2, begin=1))
    run_updates(model, wrapper, 7)
    path = tmp_path / 'state.pth'
    torch.save((model.state_dict(), wrapper.state_dict()), path)
    run_updates(model, wrapper, 7, first=7)

    other_model, other = make(optimizer, estimator, schedule=dict(interval=2, begin=1))
    model_state, wrapper_state = torch.load(path, weights_only=True)
    keys = set(wrapper_state)
    other_model.load_state_dict(model_state)
    other.load_state_dict(wrapper_state)
    assert set(wrapper_state) == keys, 'the loaded dict was changed'
    run_updates(other_model, other, 7, first=7)
    assert other.state_dict()['agvm'] == wrapper.state_dict()['agvm']
    for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_dict_contents():
    model, wrapper = make()
    run_updates(model, wrapper, 3)
    state = copy.deepcopy(wrapper.state_dict()['agvm'])
    assert state == dict(
        anchor='backbone',
        multipliers=wrapper.agvm.multipliers,
        modules=list(wrapper.agvm.multipliers),
        variances=wrapper.agvm.variances,
        noise=wrapper.agvm.noise.state_dict(),
        num_updates=3,
        num_measurements=3,
        num_skipped_measurements=0,
        optimizer='SGD',
    )


def test_plain_state_loads_and_state_of_agvm_loads_into_a_plain_wrapper():
    model, wrapper = make()
    plain = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    plain.update_params(model(*make_images(4))['loss'])
    state = copy.deepcopy(plain.state_dict())
    wrapper.load_state_dict(state)
    assert lrs(wrapper) == [0.1]
    assert set(wrapper.agvm.multipliers.values()) == {1.0}
    run_updates(model, wrapper, 3)
    saved = wrapper.state_dict()
    plain.load_state_dict(copy.deepcopy(saved))
    for parameter in model.parameters():
        assert torch.equal(
            plain.optimizer.state[parameter]['momentum_buffer'],
            wrapper.optimizer.state[parameter]['momentum_buffer'],
        )


def test_wrapper_without_hook_raises_before_first_forward():
    model = ToyDetector()
    wrapper = make_wrapper(model)
    with pytest.raises(RuntimeError, match='VarianceSyncHook'):
        with wrapper.optim_context(model):
            pytest.fail('the forward pass began')
    with pytest.raises(RuntimeError, match='VarianceSyncHook'):
        wrapper.update_params(model(*make_images(4))['loss'])
    with pytest.raises(RuntimeError, match='VarianceSyncHook'):
        wrapper.step()


def test_unsupported_optimizer_is_refused():
    with pytest.raises(TypeError, match='Adam, AdamW, SGD.*RMSprop'):
        make_wrapper(ToyDetector(), dict(type='RMSprop', lr=0.1))


@pytest.mark.parametrize(
    'setting, error, message',
    [
        (dict(anchor='rpn_head'), ValueError, "anchor='rpn_head'.*bbox_head"),
        (dict(momentum=2), ValueError, 'momentum must be'),
        (dict(ratio_bounds=(2, 1)), ValueError, r'ratio_bounds\[0\] must be'),
    ],
)
def test_bad_settings_are_refused(setting, error, message):
    with pytest.raises(error, match=message):
        make_wrapper(ToyDetector(), **setting)


def test_module_that_is_unfrozen_later_is_refused():
    model = ToyDetector()
    model.neck.requires_grad_(False)
    wrapper = make_wrapper(model, estimator='halves', accumulative_counts=2)
    run_updates(model, wrapper, 1)
    before = lrs(wrapper)
    model.neck.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r'shape \(8, 8\).*trained now.*load_from'):
        run_updates(model, wrapper, 1, first=1)
    assert lrs(wrapper) == before


def test_part_of_a_module_that_is_unfrozen_later_has_its_mu():
    model = ToyDetector()
    model.backbone[0].requires_grad_(False)
    wrapper = make_wrapper(
        model, estimator='halves', accumulative_counts=2, anchor='neck'
    )
    run_updates(model, wrapper, 1)
    model.backbone[0].requires_grad_(True)
    seen = []

    def record(*_):
        groups = wrapper.optimizer.param_groups
        seen.extend(
            group['lr']
            for group in groups
            if any(p is model.backbone[0].weight for p in group['params'])
        )

    wrapper.optimizer.register_step_pre_hook(record)
    run_updates(model, wrapper, 1, first=1)
    (lr,) = lrs(wrapper)
    assert len(wrapper.agvm.parameters['backbone']) == 4
    assert seen == [lr * wrapper.agvm.multipliers['backbone']]
    assert seen != [lr]


def test_frozen_anchor_is_refused():
    model = ToyDetector()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match="anchor='backbone'.*neck, bbox_head"):
        make_wrapper(model)


def test_gradients_are_clipped_in_the_window_only():
    model, wrapper = make(clip_grad=dict(max_norm=1e-3), clip_window=(1, 2))
    norms = []

    def record(*_):
        gradients = [p.grad.flatten() for p in model.parameters()]
        norms.append(torch.cat(gradients).norm().item())

    wrapper.optimizer.register_step_pre_hook(record)
    run_updates(model, wrapper, 5)
    assert [norm < 1.001e-3 for norm in norms] == [False, True, True, False, False]


@pytest.mark.parametrize(
    'window, error, message',
    [
        ((2, 1), ValueError, r'clip_window\[1\] must be at least 2'),
        ((-1, 1), ValueError, r'clip_window\[0\] must be at least 0'),
        ((1.5, 2), TypeError, r'clip_window\[0\] must be a whole number'),
        (820, TypeError, 'clip_window must be a pair'),
    ],
)
def test_bad_clip_windows_are_refused(window, error, message):
    with pytest.raises(error, match=message):
        make(clip_grad=dict(max_norm=1.0), clip_window=window)


def test_clip_window_without_clip_grad_is_refused():
    with pytest.raises(ValueError, match='without clip_grad clips nothing'):
        make(clip_window=(1, 2))
