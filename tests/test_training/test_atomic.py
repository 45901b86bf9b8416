"""Files that are written as a whole or not at all."""

import io
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.fileio import FileClient, LocalBackend, get_file_backend
from mmengine.fileio.backends import registry_utils
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from runners import make_runner
from test_loading import AGVM, runner
from test_resume import assert_same

from agvm_mm.training import atomic
from agvm_mm.training.atomic import (
    AtomicCheckpointHook,
    AtomicLocalBackend,
    replaced_when_whole,
)
from agvm_mm.training.loading import allow_runner_checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced(tmp_path):
    path = tmp_path / 'new' / 'file.json'
    for text in ('first', 'second'):
        with replaced_when_whole(path) as partial:
            assert partial.parent == path.parent and partial.suffix != path.suffix
            partial.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ['file.json']


def test_folder_is_replaced(tmp_path):
    path = tmp_path / 'folder'
    for name in ('first', 'second'):
        with replaced_when_whole(path) as partial:
            partial.mkdir()
            (partial / name).touch()
        assert names(path) == [name]
    assert names(tmp_path) == ['folder']


@pytest.mark.parametrize('make', [Path.touch, Path.mkdir])
def test_error_keeps_the_old_file_or_folder(tmp_path, make):
    path = tmp_path / 'data'
    make(path)
    inode = path.stat().st_ino
    with pytest.raises(KeyboardInterrupt), replaced_when_whole(path) as partial:
        make(partial)
        raise KeyboardInterrupt
    assert path.stat().st_ino == inode
    assert names(tmp_path) == ['data']


def test_failed_replacement_restores_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / 'folder'
    path.mkdir()
    (path / 'old').touch()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt), replaced_when_whole(path) as partial:
        partial.mkdir()
    assert names(path) == ['old']
    assert names(tmp_path) == ['folder']


def test_sole_writer_removes_leftovers(tmp_path):
    path = tmp_path / 'data'
    (tmp_path / '.data.partial-1').touch()
    (tmp_path / '.data.partial-2').mkdir()
    with replaced_when_whole(path) as partial:
        partial.touch()
    assert len(names(tmp_path)) == 3
    with replaced_when_whole(path, sole_writer=True) as partial:
        partial.touch()
    assert names(tmp_path) == ['data']


def test_backend_writes_whole_files_or_names_the_error(tmp_path, monkeypatch):
    path = tmp_path / 'folder' / 'x.pth'
    backend = get_file_backend(str(path), backend_args=dict(backend='agvm_atomic'))
    assert isinstance(backend, AtomicLocalBackend)
    backend.put(b'old', path)

    def die(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', die)
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old'

    rest = io.BytesIO()
    torch.save({}, rest)
    full = nullcontext(Path('/dev/full'))
    monkeypatch.setattr(atomic, 'replaced_when_whole', lambda *_, **__: full)
    for size in (1, 10**6):
        backend.held = dict(weights=torch.zeros(size))
        with pytest.raises(OSError, match='No space left'):
            backend.put(rest.getvalue(), path)


@pytest.mark.parametrize('keep', [1, 2])
def test_last_good_checkpoint_survives_failed_save(tmp_path, keep, monkeypatch):
    hook = dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=keep)
    put = AtomicLocalBackend.put
    seen = []

    def put_or_fail(self, obj, filepath):
        seen.append(sorted(p.name for p in tmp_path.glob('*.pth')))
        if 'epoch_4' in str(filepath):
            raise OSError('no space left on device')
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', put_or_fail)
    with pytest.raises(OSError, match='no space'):
        runner(tmp_path, hook, epochs=5).train()
    assert is_main_process()
    kept = [f'epoch_{n}.pth' for n in (1, 2, 3)][-keep:]
    assert seen[-1] == kept
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == kept
    monkeypatch.undo()
    later = runner(tmp_path, hook, epochs=5, resume=True)
    later.train()
    assert (
        sorted(p.name for p in tmp_path.glob('*.pth'))
        == [f'epoch_{n}.pth' for n in (4, 5)][-keep:]
    )


class MemoryBackend(LocalBackend):
    """Storage in memory, with the methods of MMEngine's remote backends."""

    files: dict[str, bytes] = {}

    def get(self, filepath):
        return self.files[str(filepath)]

    def put(self, obj, filepath):
        self.files[str(filepath)] = obj

    def isfile(self, filepath):
        return str(filepath) in self.files

    def remove(self, filepath):
        del self.files[str(filepath)]

    def join_path(self, filepath, *filepaths):
        return '/'.join([str(filepath), *filepaths])


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """Register a storage for s3:// and another prefix; return its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MemoryBackend, 'files', {})
    for registry in (registry_utils.prefix_to_backends, FileClient._prefix_to_backends):
        for prefix in ('s3', 'memory'):
            monkeypatch.setitem(registry, prefix, MemoryBackend)
    for name in ('petrel', 'memory'):
        monkeypatch.setitem(registry_utils.backends, name, MemoryBackend)
        monkeypatch.setitem(FileClient._backends, name, MemoryBackend)
    monkeypatch.setattr(FileClient, '_instances', {})
    return MemoryBackend.files


@pytest.mark.parametrize(
    ('out_dir', 'options'),
    [
        ('s3://bucket/run', {}),
        ('memory://bucket', {}),
        ('cluster:s3://bucket', {}),
        ('s3://bucket', dict(backend_args=dict(backend='memory'))),
        ('s3://bucket', dict(file_client_args=dict(backend='memory'))),
    ],
)
def test_remote_folder_is_not_local(tmp_path, memory, out_dir, options):
    for keep in (-1, 1):
        written = []
        for kind in ('CheckpointHook', 'AtomicCheckpointHook'):
            memory.clear()
            hook = dict(type=kind, out_dir=out_dir, max_keep_ckpts=keep, interval=1)
            runner(tmp_path / 'run', hook | options).train()
            written.append(set(memory))
        assert written[0] == written[1] and written[0]
    assert names(tmp_path) == ['run']
    assert not list(tmp_path.rglob('*.pth'))
    pointer = (tmp_path / 'run/last_checkpoint').read_text()
    assert pointer == f'{out_dir}/run/epoch_3.pth'


def test_run_resumes_from_remote_folder(tmp_path, memory):
    hook = dict(type='AtomicCheckpointHook', interval=1, out_dir='s3://bucket')
    through = runner(tmp_path / 'through', hook, epochs=3).train()
    runner(tmp_path / 'run', hook, epochs=2).train()
    again = runner(tmp_path / 'run', hook, epochs=3, resume=True).train()
    assert_same(dict(through.state_dict()), dict(again.state_dict()))
    # A file that lacks state is refused there as well.
    path = 's3://bucket/run/epoch_2.pth'
    runner(tmp_path / 'run', hook | dict(save_optimizer=False), epochs=2).train()
    with pytest.raises(ValueError, match=f'{path}, lacks optimizer'):
        runner(tmp_path / 'run', hook, resume=True, load_from=path).train()


def test_storage_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    hook = dict(type='AtomicCheckpointHook', out_dir='http://host/run')
    with pytest.raises(ValueError, match='nothing can be written there'):
        runner(tmp_path, hook).train()
    (tmp_path / 'file').touch()
    hook['out_dir'] = str(tmp_path / 'file')
    trained = runner(tmp_path / 'run', hook)
    with pytest.raises(ValueError, match='file/run, where nothing can.*Not a directo'):
        trained.train()
    assert trained.iter == 0


@pytest.mark.parametrize(
    'options',
    [dict(backend_args=dict(backend='local')), dict(out_dir='OUT'), {}],
    ids=str,
)
def test_local_files_are_whole_however_they_are_asked_for(tmp_path, options):
    if 'out_dir' in options:
        options = dict(out_dir=str(tmp_path / 'out'))
    trained = runner(tmp_path, dict(type='AtomicCheckpointHook', **options))
    trained.train()
    hook = next(h for h in trained.hooks if isinstance(h, AtomicCheckpointHook))
    assert isinstance(hook.file_backend, AtomicLocalBackend)
    assert hook.backend_args == dict(backend='agvm_atomic', held={})


@HOOKS.register_module(force=True)
class LateHook(Hook):
    """Add to a checkpoint after the hook that saves, and save one elsewhere."""

    priority = 'LOWEST'

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['late'] = torch.ones(3)

    def after_train_epoch(self, runner):
        runner.save_checkpoint(runner.work_dir, 'other.pth')


def test_tensors_go_straight_into_the_file(tmp_path, monkeypatch):
    sizes = []
    put = AtomicLocalBackend.put

    def measured_put(self, obj, filepath):
        sizes.append(len(obj))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', measured_put)
    trained = runner(tmp_path, dict(type='AtomicCheckpointHook', interval=1))
    # EMAHook adds another copy of the weights.
    trained.register_custom_hooks([dict(type='EMAHook'), dict(type='LateHook')])
    # Larger than anything else in the checkpoint.
    trained.model.register_buffer('large', torch.rand(300_000))
    trained.train()
    assert sizes and max(sizes) < 300_000
    # MMEngine wrote the last one by itself.
    for name in ('epoch_1.pth', 'epoch_3.pth', 'other.pth'):
        checkpoint = torch.load(tmp_path / name, weights_only=False)
        # The Runner has no schedules.
        entries = 'meta message_hub state_dict ema_state_dict optimizer late'.split()
        assert checkpoint.keys() == set(entries)
        assert torch.equal(checkpoint['state_dict']['large'], trained.model.large)
        assert torch.equal(checkpoint['late'], torch.ones(3))


@METRICS.register_module(force=True)
class ScriptedMetric(BaseMetric):
    """Metric whose values are given."""

    default_prefix = ''
    values: list[dict] = []

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(self.values.pop(0))


class Evaluated:
    """Validation that a small model can do."""

    def __init__(self, monkeypatch, *values):
        from toy import ToyDetector

        self.values = values
        forward = ToyDetector.forward

        def predict(self, inputs, data_samples=None, mode='loss'):
            return [0] if mode == 'predict' else forward(self, inputs, data_samples)

        monkeypatch.setattr(ToyDetector, 'forward', predict)

    def run(self, *args, **kwargs):
        self.build(*args, **kwargs).train()

    def build(self, work_dir, hook, epochs=None, **kwargs):
        ScriptedMetric.values = list(self.values)
        loader = dict(
            dataset=dict(type='ImageDataset', images=4),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
        )
        return make_runner(
            work_dir,
            AGVM,
            images=16,
            batch_size=4,
            train_cfg=dict(
                type='LargeBatchTrainLoop',
                max_epochs=epochs or len(self.values),
                total_batch_size=8,
                val_interval=1,
            ),
            hooks=[dict(type='VarianceSyncHook')],
            checkpoint=hook,
            val_dataloader=loader,
            val_cfg=dict(),
            val_evaluator=dict(type='ScriptedMetric'),
            **kwargs,
        )


def saved(work_dir):
    """Return the checkpoints of a folder; without dates and paths."""
    found = {}
    allow_runner_checkpoints()
    for path in work_dir.glob('*.pth'):
        checkpoint = torch.load(path)
        found[path.name] = (
            checkpoint['meta']['iter'],
            checkpoint['meta']['epoch'],
            {k: v for k, v in checkpoint['state_dict'].items()},
            {
                key: value
                for key, value in checkpoint['message_hub']['runtime_info'].items()
                if 'keep' in key or 'best_score' in key
            },
        )
    return found


SAVE = [
    dict(interval=-1, save_best='a/acc'),
    dict(interval=1, save_best='a/acc', max_keep_ckpts=1),
    dict(interval=1, save_best=['a/acc', 'loss'], max_keep_ckpts=2),
    dict(interval=1, save_best='auto', by_epoch=False, max_keep_ckpts=1),
    dict(interval=3, save_best='a/acc', by_epoch=False, max_keep_ckpts=2),
    dict(interval=2, save_best='loss', save_last=False),
    # Each file replaces itself.
    dict(interval=1, save_best='a/acc', max_keep_ckpts=1, filename_tmpl='last.pth'),
]
VALUES = [
    {'a/acc': 0.1, 'loss': 3.0},
    {'a/acc': 0.3, 'loss': 2.0},
    {'a/acc': 0.2, 'loss': 1.0},
    {'a/acc': 0.4, 'loss': 4.0},
]


@pytest.mark.parametrize('options', SAVE, ids=str)
def test_saves_what_mmengine_saves(tmp_path, monkeypatch, options):
    evaluated = Evaluated(monkeypatch, *VALUES)
    found = []
    for kind in ('CheckpointHook', 'AtomicCheckpointHook'):
        # A name of its own, which MMEngine's message hub remembers.
        work_dir = tmp_path / f'{tmp_path.name}-{kind}'
        evaluated.run(work_dir, dict(type=kind, **options))
        found.append(saved(work_dir))
        pointer = work_dir / 'last_checkpoint'
        found[-1]['pointer'] = pointer.exists() and Path(pointer.read_text()).name
    assert_same(*found)
    assert len(found[0]) > 1
    assert not list(work_dir.glob('.*'))


@pytest.mark.parametrize('options', SAVE, ids=str)
def test_failed_save_of_the_best_leaves_the_one_before(tmp_path, monkeypatch, options):
    put = AtomicLocalBackend.put
    best = []

    def put_or_fail(self, obj, filepath):
        name = Path(filepath).name
        if name.startswith('best_'):
            best.append(name)
            if len([n for n in best if n[:10] == name[:10]]) == 2:
                raise OSError('no space left on device')
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', put_or_fail)
    evaluated = Evaluated(monkeypatch, *VALUES)
    with pytest.raises(OSError, match='no space'):
        evaluated.run(tmp_path, dict(type='AtomicCheckpointHook', **options))
    left = {name for name in names(tmp_path) if name.startswith('best_')}
    assert left == set(best[:-1])
    for name in left:
        torch.load(tmp_path / name)


def test_best_of_a_resumed_run_replaces_the_one_before(tmp_path, monkeypatch):
    hook = dict(type='AtomicCheckpointHook', interval=1, save_best='a/acc')
    Evaluated(monkeypatch, *VALUES[:2]).run(tmp_path, hook)
    Evaluated(monkeypatch, *VALUES[2:]).run(tmp_path, hook, epochs=4, resume=True)
    best = [name for name in names(tmp_path) if name.startswith('best_')]
    assert best == ['best_a_acc_epoch_4.pth']
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    for epoch in (1, 2):
        path = tmp_path / f'best_a_acc_epoch_{epoch}.pth'
        assert log.count(f'The previous best checkpoint {path} is removed') == 1


class FolderHook(Hook):
    """Hook that makes a folder of the first checkpoint, as DeepSpeed writes it."""

    priority = 'LOWEST'

    def after_train_epoch(self, runner):
        if runner.epoch == 0:
            path = Path(runner.work_dir, 'epoch_1.pth')
            path.unlink()
            path.mkdir()
            (path / 'part').touch()


def test_outdated_folder_is_removed(tmp_path):
    hook = dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1)
    trained = runner(tmp_path, hook, epochs=2)
    trained.register_hook(FolderHook())
    trained.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_2.pth']


def test_best_checkpoint_is_not_recommended(tmp_path, monkeypatch):
    hook = dict(type='AtomicCheckpointHook', interval=1, save_best='a/acc')
    Evaluated(monkeypatch, *VALUES).run(tmp_path, hook)
    (tmp_path / 'epoch_4.pth').unlink()
    os.utime(tmp_path / 'best_a_acc_epoch_4.pth')
    with pytest.raises(RuntimeError) as error:
        runner(tmp_path, epochs=5, resume=True).train()
    assert f'--resume {tmp_path / "epoch_3.pth"} ' in str(error.value)
    best = str(tmp_path / 'best_a_acc_epoch_4.pth')
    with pytest.raises(ValueError, match=r'lacks optimizer, which would') as error:
        runner(tmp_path, epochs=5, resume=True, load_from=best).train()
    assert f'--resume {tmp_path / "epoch_3.pth"} ' in str(error.value)


def test_best_checkpoint_is_evaluated_whatever_resume_says(tmp_path, monkeypatch):
    evaluated = Evaluated(monkeypatch, *VALUES)
    evaluated.run(tmp_path, dict(type='AtomicCheckpointHook', save_best='a/acc'))
    again = evaluated.build(
        tmp_path,
        dict(type='AtomicCheckpointHook'),
        resume=True,
        load_from=str(tmp_path / 'best_a_acc_epoch_4.pth'),
        param_scheduler=[dict(type='StepLR', step_size=1)],
    )
    assert again.val() == VALUES[0]


def test_pointer_to_the_last_checkpoint_is_replaced_as_a_whole(tmp_path, monkeypatch):
    pointer = tmp_path / 'last_checkpoint'
    replace, seen = os.replace, []

    def replace_or_die(source, target):
        if Path(target) == pointer:
            seen.append(Path(source).read_text())
            if len(seen) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', replace_or_die)
    hook = dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1)
    with pytest.raises(KeyboardInterrupt):
        runner(tmp_path, hook, epochs=5).train()
    # The checkpoint that it names is there, too.
    assert pointer.read_text() == seen[1] == str(tmp_path / 'epoch_2.pth')
    assert Path(seen[1]).exists()
    monkeypatch.undo()
    runner(tmp_path, hook, epochs=5, resume=True).train()
    assert pointer.read_text() == str(tmp_path / 'epoch_5.pth')
    assert not [name for name in names(tmp_path) if name.startswith('.')]


@pytest.mark.parametrize('published', ['AtomicCheckpointHook', 'CheckpointHook'])
def test_published_checkpoint_is_not_resumed(tmp_path, published):
    hook = dict(type=published, interval=1, published_keys=['meta', 'state_dict'])
    runner(tmp_path, hook).train()
    (path,) = tmp_path.glob('epoch_3-*.pth')
    with pytest.raises(ValueError, match='lacks message_hub, optimizer') as error:
        runner(tmp_path, hook, epochs=4, resume=True, load_from=str(path)).train()
    assert f'--resume {tmp_path / "epoch_3.pth"} ' in str(error.value)


def test_hook_of_mmengines_own_loop_publishes_and_resumes(tmp_path):
    def run(**kwargs):
        loop = dict(by_epoch=True, max_epochs=kwargs.pop('epochs'))
        hook = dict(type='AtomicCheckpointHook', published_keys='state_dict')
        make_runner(
            tmp_path,
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05)),
            images=16,
            batch_size=4,
            train_cfg=loop,
            checkpoint=hook,
            **kwargs,
        ).train()

    run(epochs=1)
    run(epochs=2, resume=True)
    assert len(list(tmp_path.glob('epoch_2-*.pth'))) == 1
    (tmp_path / 'last_checkpoint').write_text('')
    with pytest.raises(RuntimeError, match='is empty') as error:
        run(epochs=3, resume=True)
    assert f'--resume {tmp_path / "epoch_2.pth"} ' in str(error.value)
