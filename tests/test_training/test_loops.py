"""One iteration of a large-batch loop is one optimizer update on the total batch."""

import pytest
import torch
from runners import ImageDataset, make_runner
from torch.utils.data import DataLoader

from agvm_mm.training.dataloader import UpdateDataLoader

PLAIN = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))


def windows(images, batch_size, total, **kwargs):
    loader = DataLoader(ImageDataset(images), batch_size=batch_size, **kwargs)
    return UpdateDataLoader(loader, total, 0)


@pytest.mark.parametrize(
    'images, sizes',
    [
        (24, [(4, 4, 4), (4, 4, 4)]),
        (20, [(4, 4, 4), (4, 4)]),
        (18, [(4, 4, 4), (4, 2)]),
        (13, [(4, 4, 4), (1,)]),
    ],
)
def test_windows_know_their_images(images, sizes):
    loader = windows(images, 4, 12)
    assert len(loader) == len(sizes)
    seen = list(loader)
    assert [window.sizes for window in seen] == sizes
    for window in loader:
        assert tuple(len(batch[0]) for batch in window.micro_batches()) == window.sizes


def test_drop_last_is_respected():
    loader = windows(18, 4, 12, drop_last=True)
    assert [window.sizes for window in loader] == [(4, 4, 4), (4,)]


def test_unread_window_is_skipped():
    first = [
        [b[0][:, 0].tolist() for b in w.micro_batches()] for w in windows(24, 4, 12)
    ]
    loader = iter(windows(24, 4, 12))
    next(loader)
    assert [b[0][:, 0].tolist() for b in next(loader).micro_batches()] == first[1]


def test_indivisible_total_names_nearest_multiples():
    with pytest.raises(ValueError, match='total_batch_size=13.*are 12 and 16'):
        windows(24, 4, 13)
    with pytest.raises(ValueError, match='total_batch_size=2 .*multiples are 4'):
        windows(24, 4, 2)
    with pytest.raises(TypeError, match='total_batch_size'):
        windows(24, 4, 12.0)


@pytest.mark.parametrize('last', [24, 20, 18])
def test_update_is_mean_over_its_images(tmp_path, last):
    """Compare with plain SGD steps on all images of an update at once."""
    runner = make_runner(
        tmp_path,
        PLAIN,
        images=last,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=2, total_batch_size=12),
        shuffle=False,
    )
    model = runner.train()
    expected = type(model)()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9)
    inputs, targets = ImageDataset(last).tensors
    for _ in range(2):
        for x, y in zip(inputs.split(12), targets.split(12), strict=True):
            optimizer.zero_grad()
            expected(x, y)['loss'].backward()
            optimizer.step()
    assert runner.iter == 4
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_iterations_with_infinite_sampler(tmp_path):
    runner = make_runner(
        tmp_path,
        PLAIN,
        images=20,
        batch_size=4,
        train_cfg=dict(
            type='LargeBatchIterTrainLoop', max_iters=5, total_batch_size=12
        ),
        sampler='InfiniteSampler',
        shuffle=False,
    )
    model = runner.train()
    expected = type(model)()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9)
    inputs, targets = (t.repeat(3, 1) for t in ImageDataset(20).tensors)
    for x, y in zip(inputs.split(12), targets.split(12), strict=True):
        optimizer.zero_grad()
        expected(x, y)['loss'].backward()
        optimizer.step()
    assert runner.iter == 5
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_logged_loss_is_mean_over_the_update(tmp_path):
    runner = make_runner(
        tmp_path,
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0)),
        images=18,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=12),
        shuffle=False,
    )
    runner.train()
    # The second update has 6 images in micro-batches of 4 and 2.
    inputs, targets = (tensor[12:] for tensor in ImageDataset(18).tensors)
    expected = type(runner.model)()(inputs, targets)['loss']
    logged = runner.message_hub.get_scalar('train/loss').current()
    assert float(logged) == pytest.approx(expected.item(), abs=1e-12)


AGVM = dict(PLAIN, type='AGVMOptimWrapper')


def resumable(work_dir, wrapper, total, epochs, *, allow=False, **kwargs):
    """Build a run on 24 images in micro-batches of 2 that saves every update."""
    return make_runner(
        work_dir,
        wrapper,
        images=24,
        batch_size=2,
        train_cfg=dict(
            type='LargeBatchTrainLoop',
            max_epochs=epochs,
            total_batch_size=total,
            allow_resume_mismatch=allow,
        ),
        hooks=[dict(type='VarianceSyncHook')] if wrapper is AGVM else (),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
        **kwargs,
    )


@pytest.mark.parametrize('wrapper', [PLAIN, AGVM], ids=['plain', 'agvm'])
def test_resuming_with_other_total_batch_is_refused(tmp_path, wrapper):
    resumable(tmp_path, wrapper, 8, 1).train()
    message = 'images of an update: 8 in the checkpoint, 12 in this run.*allow_resume_m'
    with pytest.raises(ValueError, match=message):
        resumable(tmp_path, wrapper, 12, 2, resume=True).train()
    later = resumable(tmp_path, wrapper, 8, 2, resume=True)
    later.train()
    assert later.iter == 6


@pytest.mark.parametrize('wrapper', [PLAIN, AGVM], ids=['plain', 'agvm'])
@pytest.mark.parametrize('total, left', [(4, 2), (12, 0), (24, 0)])
def test_allowed_other_total_batch_skips_no_epoch(tmp_path, wrapper, total, left):
    resumable(tmp_path, wrapper, 8, 3).train()
    # 16 of the 24 images of the second epoch are done; a started update counts.
    later = resumable(
        tmp_path,
        wrapper,
        total,
        4,
        allow=True,
        resume=True,
        load_from=str(tmp_path / 'iter_5.pth'),
    )
    later.train()
    assert later.iter == 5 + left + 2 * 24 // total
    assert later.epoch == 4


def test_interrupted_training_does_not_affect_the_next(tmp_path):
    runner = resumable(tmp_path, PLAIN, 8, 2)
    step = runner.model.train_step
    calls = []

    def die(*args, **kwargs):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    runner.model.train_step = die
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    again = resumable(tmp_path / 'again', PLAIN, 8, 1)
    again.message_hub.load_state_dict(runner.message_hub.state_dict())
    again.train()
    assert again.iter == 3


def test_auto_scale_lr_of_mmengine_is_refused(tmp_path):
    scaling = dict(enable=True, base_batch_size=4)
    with pytest.raises(ValueError, match='does not know total_batch_size=8'):
        resumable(tmp_path, PLAIN, 8, 1, auto_scale_lr=scaling).train()
    scaling['enable'] = False
    runner = resumable(tmp_path, PLAIN, 8, 1, auto_scale_lr=scaling)
    runner.train()
    assert runner.iter == 3


@pytest.mark.parametrize('place', ['loop', 'hook'])
def test_flag_in_words_is_refused(tmp_path, place):
    # As --cfg-options train_cfg.allow_resume_mismatch=no
    flag = dict(allow_resume_mismatch='no')
    hook = dict(type='VarianceSyncHook', begin=0, interval=1)
    runner = make_runner(
        tmp_path,
        dict(PLAIN, type='AGVMOptimWrapper'),
        images=8,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=8)
        | (flag if place == 'loop' else {}),
        hooks=[hook | (flag if place == 'hook' else {})],
    )
    with pytest.raises(TypeError, match="mismatch must be True or False, got 'no'"):
        runner.train()


def test_accumulating_twice_is_refused(tmp_path):
    runner = make_runner(
        tmp_path,
        dict(PLAIN, accumulative_counts=2),
        images=24,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=1, total_batch_size=12),
    )
    with pytest.raises(ValueError, match='remove .*accumulative_counts=2'):
        runner.train()
