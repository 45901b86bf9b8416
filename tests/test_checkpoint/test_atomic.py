"""Files that are written as a whole or not at all."""

import os
from pathlib import Path

import pytest
from mmengine.dist import is_main_process
from mmengine.fileio import get_file_backend
from test_loading import runner

from agvm_mm.checkpoint.atomic import AtomicLocalBackend, replaced_when_whole


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


def test_backend_writes_whole_files(tmp_path, monkeypatch):
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
