"""Checkpoints: safe loading, and files that are damaged."""

import os
import pickle
import subprocess
import sys
import textwrap
from collections import OrderedDict

import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from runners import make_runner

from agvm_mm.training.loading import LOADS_SAFELY, allow_runner_checkpoints

AGVM = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05),
)


def runner(work_dir, checkpoint=None, epochs=3, **kwargs):
    return make_runner(
        work_dir,
        AGVM,
        images=16,
        batch_size=4,
        train_cfg=dict(
            type='LargeBatchTrainLoop', max_epochs=epochs, total_batch_size=8
        ),
        hooks=[dict(type='VarianceSyncHook')],
        checkpoint=checkpoint or dict(type='CheckpointHook', interval=1),
        **kwargs,
    )


@pytest.mark.parametrize('hook', ['CheckpointHook', 'AtomicCheckpointHook'])
def test_checkpoints_resume_with_weights_only(tmp_path, hook):
    runner(tmp_path, dict(type=hook, interval=1), epochs=2).train()
    # In a new process, where nothing has been allowed yet.
    script = f"""
        import torch
        from pathlib import Path
        from test_loading import runner
        later = runner(Path({str(tmp_path)!r}), epochs=3, resume=True)
        later.train()
        assert later.iter == 6
        loaded = later.message_hub.get_scalar('train/loss')
        assert len(loaded.data[0]) == 6, loaded.data
        assert loaded.mean() == loaded.data[0].mean()
        """
    subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script)],
        check=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )


class Payload:
    """Content of a hostile checkpoint."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.skipif(not LOADS_SAFELY, reason='before 2.6 torch loads anything')
@pytest.mark.parametrize(
    'payload',
    [
        Payload(os.system, 'true'),
        Payload(getattr, OrderedDict, 'update'),
        Payload(getattr, HistoryBuffer, '__init__'),
    ],
)
def test_unsafe_files_are_still_refused(tmp_path, payload):
    allow_runner_checkpoints()
    torch.save(dict(meta=payload), tmp_path / 'hostile.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'hostile.pth')


def damage(path, how):
    content = path.read_bytes()
    if how == 'truncated':
        path.write_bytes(content[: len(content) // 2])
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'missing':
        path.unlink()
    else:
        middle = len(content) // 2
        changed = bytes(255 - byte for byte in content[middle : middle + 64])
        path.write_bytes(content[:middle] + changed + content[middle + 64 :])


@pytest.mark.parametrize('how', ['truncated', 'empty', 'missing', 'flipped'])
def test_damaged_checkpoint_error_names_newest_good_one(tmp_path, how):
    runner(tmp_path).train()
    damage(tmp_path / 'epoch_3.pth', how)
    with pytest.raises(RuntimeError) as error:
        runner(tmp_path, epochs=4, resume=True).train()
    assert 'epoch_3.pth' in str(error.value)
    assert f'--resume {tmp_path / "epoch_2.pth"}' in str(error.value)

    damage(tmp_path / 'epoch_2.pth', how)
    damage(tmp_path / 'epoch_1.pth', how)
    with pytest.raises(RuntimeError, match='no other checkpoint'):
        runner(tmp_path, epochs=4, resume=True).train()


def test_damaged_checkpoint_is_refused_without_agvm(tmp_path):
    runner(tmp_path).train()
    damage(tmp_path / 'epoch_3.pth', 'truncated')
    with pytest.raises(RuntimeError, match='truncated or corrupt'):
        make_runner(
            tmp_path,
            dict(type='OptimWrapper', optimizer=AGVM['optimizer']),
            images=16,
            batch_size=4,
            train_cfg=dict(
                type='LargeBatchTrainLoop', max_epochs=4, total_batch_size=8
            ),
            resume=True,
        ).train()


@pytest.mark.parametrize('pointer', ['', '\n', 'gone', None], ids=repr)
def test_pointer_without_checkpoint_error_names_newest_good_one(tmp_path, pointer):
    runner(tmp_path).train()
    named = tmp_path / 'last_checkpoint'
    if pointer is None:
        named.unlink()
        message = f'there is no {named}, which names the checkpoint'
    elif pointer == 'gone':
        # As after the folder was moved.
        named.write_text('/elsewhere/run/epoch_3.pth')
        message = f'/elsewhere/run/epoch_3.pth does not exist ({named} names it)'
    else:
        named.write_text(pointer)
        message = f'{named}, which names the checkpoint, is empty'
    with pytest.raises(RuntimeError) as error:
        runner(tmp_path, epochs=4, resume=True).train()
    assert message in str(error.value)
    assert f'--resume {tmp_path / "epoch_3.pth"} ' in str(error.value)
    path = str(tmp_path / 'epoch_3.pth')
    runner(tmp_path, epochs=4, resume=True, load_from=path).train()


def test_first_start_with_resume_begins_the_training(tmp_path):
    first = runner(tmp_path, epochs=1, resume=True)
    first.train()
    assert first.iter == 2
