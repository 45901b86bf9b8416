"""Checkpoints without the state of optimizer, schedules or AGVM."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from runners import make_runner

from agvm_mm.training.loading import (
    LOADS_SAFELY,
    allow_runner_checkpoints,
    missing_parts,
    read_outline,
)
from agvm_mm.training.resume import newest_resumable

LOOP = dict(type='LargeBatchTrainLoop', max_epochs=4, total_batch_size=8)
PLAIN = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
AGVM = PLAIN | dict(type='AGVMOptimWrapper', momentum=0.5)
SCHEDULES = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
    dict(type='CosineAnnealingLR', eta_min=0.001, by_epoch=False, begin=3, end=16),
    dict(type='MultiStepLR', milestones=[2], gamma=0.1),
]


@HOOKS.register_module(force=True)
class RecordHook(Hook):
    """Hook that records the learning rates and the multipliers of each update."""

    seen: list[tuple] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        wrapper = runner.optim_wrapper
        rates = [group['lr'] for group in wrapper.optimizer.param_groups]
        agvm = getattr(wrapper, 'agvm', None)
        multipliers = None if agvm is None else agvm.multipliers
        values = [
            {key: group.get(key) for key in ('lr', 'momentum', 'betas')}
            for group in wrapper.optimizer.param_groups
        ]
        self.seen.append((runner.iter, rates, multipliers, values))


def run(
    work_dir,
    wrapper=AGVM,
    *,
    train_cfg=LOOP,
    schedules=SCHEDULES,
    saved=None,
    allow=False,
    hooks=(),
    **kwargs,
):
    """Train, 4 updates of 8 images in an epoch; return what RecordHook saw."""
    train_cfg, is_agvm = dict(train_cfg), wrapper['type'] == 'AGVMOptimWrapper'
    agvm = dict(type='VarianceSyncHook', interval=1, begin=5)
    if allow:
        (agvm if is_agvm else train_cfg)['allow_resume_mismatch'] = True
    RecordHook.seen = []
    make_runner(
        work_dir,
        dict(wrapper),
        images=32,
        batch_size=4,
        train_cfg=train_cfg,
        hooks=[
            *([agvm] if is_agvm else []),
            dict(type='RecordHook', priority='LOW'),
            *hooks,
        ],
        checkpoint=dict(type='AtomicCheckpointHook') | (saved or {}),
        param_scheduler=copy.deepcopy(schedules),
        **kwargs,
    ).train()
    return RecordHook.seen


COMPLETE = dict.fromkeys(['state_dict', 'meta', 'message_hub', 'optimizer'], {})
STRIPPED = dict(interval=1, save_optimizer=False)


def resume(work_dir, *args, epoch=2, **kwargs):
    path = str(work_dir / f'epoch_{epoch}.pth')
    return run(work_dir, *args, resume=True, load_from=path, **kwargs)


@pytest.mark.parametrize('wrapper', [AGVM, PLAIN], ids=['agvm', 'plain'])
@pytest.mark.parametrize(
    ('left_out', 'part'),
    [('save_optimizer', 'optimizer'), ('save_param_scheduler', 'param_schedulers')],
)
def test_missing_state_is_refused_and_named(tmp_path, wrapper, left_out, part):
    run(tmp_path, wrapper, saved={'interval': 1, left_out: False})
    with pytest.raises(ValueError, match=rf'epoch_2.pth, lacks {part}, ') as error:
        resume(tmp_path, wrapper)
    # None of the others has it.
    assert 'there is no other checkpoint' in str(error.value)
    assert 'Set allow_resume_mismatch=True in train_cfg' in str(error.value)


def test_refusal_names_the_newest_checkpoint_that_can_be_resumed(tmp_path):
    run(tmp_path, saved=dict(interval=1))
    for epoch in (2, 4):
        strip(tmp_path / f'epoch_{epoch}.pth', 'optimizer')
    with pytest.raises(ValueError, match='lacks optimizer') as error:
        resume(tmp_path)
    assert f'--resume {tmp_path / "epoch_3.pth"} ' in str(error.value)


def strip(path, *keys):
    """Remove parts of a checkpoint."""
    allow_runner_checkpoints()
    checkpoint = torch.load(path)
    for key in keys:
        del checkpoint[key]
    torch.save(checkpoint, path)


@pytest.mark.parametrize('wrapper', [AGVM, PLAIN], ids=['agvm', 'plain'])
def test_allowed_resume_without_optimizer_continues_counts_and_rates(tmp_path, wrapper):
    expected = run(tmp_path, wrapper, saved=STRIPPED)
    found = resume(tmp_path, wrapper, allow=True)
    assert [update for update, *_ in found] == list(range(8, 16))
    for (update, rates, multipliers, _), (same, right, *_) in zip(
        found, expected[8:], strict=True
    ):
        assert update == same
        assert rates == right, update
        # Of a run that has passed `begin`.
        assert multipliers is None or set(multipliers.values()) != {1.0}
    log = '\n'.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert 'epoch_2.pth, lacks optimizer; resuming it without' in log


@pytest.mark.parametrize('wrapper', [AGVM, PLAIN], ids=['agvm', 'plain'])
def test_allowed_resume_in_the_middle_of_an_epoch_continues_rates(tmp_path, wrapper):
    saved = STRIPPED | dict(by_epoch=False)
    expected = run(tmp_path, wrapper, saved=saved)
    path = str(tmp_path / 'iter_10.pth')
    found = run(tmp_path, wrapper, resume=True, load_from=path, allow=True)
    for (update, rates, *_), (_, right, *_) in zip(found, expected[10:], strict=True):
        assert rates == right, update


@pytest.mark.parametrize('parts', [['param_schedulers'], ['optimizer']], ids=str)
@pytest.mark.parametrize(
    'schedules',
    [
        [dict(type='OneCycleLR', eta_max=0.1, total_steps=16, by_epoch=False)],
        [
            dict(type='CosineAnnealingMomentum', T_max=16, eta_min=0.5, by_epoch=False),
            dict(type='StepLR', step_size=1, gamma=0.5),
        ],
        SCHEDULES,
    ],
    ids=['one cycle', 'momentum', 'chain'],
)
@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_allowed_resume_continues_every_schedule(tmp_path, parts, schedules, optimizer):
    arguments = dict(momentum=0.9) if optimizer == 'SGD' else dict(betas=(0.9, 0.99))
    wrapper = PLAIN | dict(optimizer=dict(type=optimizer, lr=0.05, **arguments))
    expected = run(tmp_path, wrapper, schedules=schedules, saved=dict(interval=1))
    strip(tmp_path / 'epoch_2.pth', *parts)
    found = resume(tmp_path, wrapper, schedules=schedules, allow=True)
    assert [seen[3] for seen in found] == [seen[3] for seen in expected[8:]]
    assert len({str(seen[3]) for seen in found}) > 1


def test_schedule_that_follows_a_metric_needs_its_state(tmp_path):
    schedules = [dict(type='ReduceOnPlateauLR', monitor='loss')]
    run(tmp_path, PLAIN, schedules=schedules, saved=STRIPPED)
    with pytest.raises(ValueError, match='ReduceOnPlateauLR follows the metrics'):
        resume(tmp_path, PLAIN, schedules=schedules, allow=True)


def test_schedule_that_was_added_is_refused_or_continued(tmp_path):
    expected = run(tmp_path / 'through', PLAIN)
    run(tmp_path, PLAIN, schedules=SCHEDULES[:2], saved=dict(interval=1))
    with pytest.raises(ValueError, match='lacks param_schedulers'):
        resume(tmp_path, PLAIN)
    found = resume(tmp_path, PLAIN, allow=True)
    assert [seen[3] for seen in found] == [seen[3] for seen in expected[8:]]


@pytest.mark.parametrize('wrapper', [AGVM, PLAIN], ids=['agvm', 'plain'])
def test_averages_are_not_trained_without_being_asked(tmp_path, wrapper):
    ema = dict(type='EMAHook', momentum=0.5)
    run(tmp_path, wrapper, saved=dict(interval=1), hooks=[ema])
    resume(tmp_path, wrapper, hooks=[ema])
    with pytest.raises(ValueError, match='weights of the checkpoint are averages of'):
        resume(tmp_path, wrapper)
    resume(tmp_path, wrapper, allow=True)


def test_other_total_batch_is_refused_without_optimizer_state(tmp_path):
    for wrapper in (AGVM, PLAIN):
        run(tmp_path, wrapper, saved=STRIPPED)
        strip(tmp_path / 'epoch_2.pth', 'param_schedulers')
        with pytest.raises(ValueError, match='lacks optimizer, param_schedulers'):
            resume(tmp_path, wrapper, train_cfg=LOOP | dict(total_batch_size=16))


def test_other_modules_continue_the_schedules(tmp_path):
    expected = run(tmp_path, saved=dict(interval=1))
    modules = dict(backbone=['backbone'], rest=['neck', 'roi_head'])
    found = resume(tmp_path, AGVM | dict(modules=modules), allow=True)
    for (update, rates, *_), (_, right, *_) in zip(found, expected[8:], strict=True):
        assert rates == right, update


def test_loop_that_counts_otherwise_is_refused(tmp_path):
    run(tmp_path, PLAIN, train_cfg=dict(by_epoch=True, max_epochs=2))
    with pytest.raises(
        ValueError, match='images of an update: not stored in the checkpoint, 8 in'
    ):
        resume(tmp_path, PLAIN)
    assert resume(tmp_path, PLAIN, allow=True)


def test_same_batch_in_other_iterations_is_refused(tmp_path):
    accumulating = AGVM | dict(accumulative_counts=2)
    loop = dict(by_epoch=True, max_epochs=2)
    run(tmp_path, accumulating, train_cfg=loop, saved=dict(interval=1))
    with pytest.raises(
        ValueError, match='images of an iteration: 4 in the checkpoint, 8 in this run'
    ):
        resume(tmp_path, AGVM)
    assert resume(tmp_path, accumulating, train_cfg=loop | dict(max_epochs=3))


@pytest.mark.parametrize('left_out', [{}, dict(save_optimizer=False)], ids=str)
def test_updates_of_mmengines_loop_are_counted(tmp_path, left_out):
    accumulating = AGVM | dict(accumulative_counts=2)
    loop = dict(by_epoch=True, max_epochs=4)
    expected = run(
        tmp_path, accumulating, train_cfg=loop, saved=dict(interval=1) | left_out
    )
    found = resume(tmp_path, accumulating, train_cfg=loop, allow=True)
    # `begin` is passed: AGVM acts from the first step, at the second iteration.
    assert all(multipliers['neck'] != 1 for _, _, multipliers, _ in found[1:])
    for (update, rates, *_), (_, right, *_) in zip(found, expected[16:], strict=True):
        assert rates == right, update


def test_weights_are_not_resumed(tmp_path):
    run(tmp_path, saved=dict(interval=1))
    strip(tmp_path / 'epoch_2.pth', 'message_hub', 'optimizer')
    with pytest.raises(
        ValueError, match='lacks message_hub, optimizer: it has weights'
    ) as error:
        resume(tmp_path, allow=True)
    assert f'--resume {tmp_path / "epoch_4.pth"} ' in str(error.value)


def test_second_train_of_a_runner_is_no_resume(tmp_path):
    runner = make_runner(
        tmp_path, dict(PLAIN), images=16, batch_size=4, train_cfg=dict(LOOP)
    )
    runner.train()
    runner.train()


def test_outline_has_all_parts_and_reads_no_tensors(tmp_path):
    run(tmp_path, saved=dict(interval=1))
    path = tmp_path / 'epoch_2.pth'
    outline = read_outline(path)
    assert outline.keys() == torch.load(path, weights_only=False).keys()
    assert not missing_parts(outline, schedulers=3)
    assert missing_parts(outline, schedulers=4) == ['param_schedulers']
    device = 'meta' if LOADS_SAFELY else 'cpu'
    assert {value.device.type for value in outline['state_dict'].values()} == {device}


class Touch:
    """Payload that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.skipif(not LOADS_SAFELY, reason='before 2.6 torch loads anything')
def test_outline_runs_nothing_and_unsafe_files_are_not_recommended(tmp_path):
    run(tmp_path, saved=dict(interval=1))
    allow_runner_checkpoints()
    checkpoint = torch.load(tmp_path / 'epoch_3.pth')
    checkpoint['meta']['payload'] = Touch(tmp_path / 'touched')
    torch.save(checkpoint, tmp_path / 'epoch_3.pth')
    assert read_outline(tmp_path / 'epoch_3.pth') is None
    (tmp_path / 'epoch_4.pth').unlink()
    with pytest.raises(RuntimeError) as error:
        run(tmp_path, resume=True)
    assert not (tmp_path / 'touched').exists()
    assert f'--resume {tmp_path / "epoch_2.pth"} ' in str(error.value)


def test_other_files_have_no_outline(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(COMPLETE, path)
    whole = path.read_bytes()
    assert read_outline(path) == COMPLETE and not missing_parts(COMPLETE)
    for write in (
        lambda: path.write_bytes(b'not a zip archive'),
        lambda: path.write_bytes(pickle.dumps({})),
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: torch.save([1, 2], path),
        lambda: torch.save(torch.zeros(2), path),
    ):
        write()
        assert missing_parts(read_outline(path))


def test_file_that_is_no_archive_is_not_recommended(tmp_path):
    """Torch 1.5 wrote such files; whether they are whole cannot be checked."""
    path = tmp_path / 'x.pth'
    torch.save(COMPLETE, path, _use_new_zipfile_serialization=False)
    assert newest_resumable([tmp_path]) is None
    torch.save(COMPLETE, path)
    assert newest_resumable([tmp_path]) == path
