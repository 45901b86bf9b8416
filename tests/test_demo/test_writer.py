"""Tests of the written data: valid COCO, deterministic, complete or absent."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from demo import data as command
from demo import scenes, write_digits, writer

NUM_SCENES = {'train': 12, 'val': 6}


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


@pytest.fixture(scope='module', params=scenes.SPLITS)
def coco(digits, request):
    split = request.param
    api = COCO(digits / 'annotations' / f'instances_{split}.json')
    api.folder = digits / split
    api.split = split
    return api


def test_images_and_categories_are_complete(coco):
    assert len(coco.imgs) == NUM_SCENES[coco.split]
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(
        '0123456789'
    )
    assert len(list(coco.folder.iterdir())) == len(coco.imgs)
    for info in coco.imgs.values():
        image = cv2.imread(str(coco.folder / info['file_name']))
        assert image.shape == (info['height'], info['width'], 3)


def test_boxes_and_areas_match_masks(coco):
    assert coco.anns
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        rows, columns = np.where(mask)
        x, y, width, height = annotation['bbox']
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert annotation['area'] == mask.sum() > 0
        assert annotation['iscrowd'] == 0


def test_masks_of_image_are_disjoint(coco):
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.imgToAnns[image_id]]
        assert np.sum(masks, axis=0).max() == 1


def test_annotations_match_scene(coco):
    images, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, 0)[coco.split]
    for index, (image_id, info) in enumerate(sorted(coco.imgs.items())):
        rng = scenes.scene_rng(0, coco.split, index)
        scene = scenes.compose_scene(rng, images, labels, digits)
        stored = cv2.imread(str(coco.folder / info['file_name']))
        np.testing.assert_array_equal(stored[..., ::-1], scene.image)
        names = [
            coco.cats[annotation['category_id']]['name']
            for annotation in coco.imgToAnns[image_id]
        ]
        assert names == [str(label) for label in scene.labels]


def test_same_seed_gives_same_bytes(digits, tmp_path):
    write_digits(tmp_path / 'again', num_train=12, num_val=6, progress=False)
    assert files(tmp_path / 'again') == files(digits)


# Recorded before panoptic and semantic maps were added.
INSTANCES_SHA256 = {
    'train': '2b5c1371f727c4b7f57917ac25c5ced8cceaa6656d0dc2152aa4c44eefbcc01e',
    'val': 'bcabb9b693654c542fad664ae9dddddfbba16199d0ea31fc4a1e66a74686cfb7',
}
MEAN_PIXELS = {
    'train': [132.85, 163.02, 143.95, 159.4, 158.66, 119.53]
    + [110.54, 121.77, 105.96, 108.13, 125.93, 146.26],
    'val': [142.68, 134.25, 149.16, 104.95, 143.58, 134.74],
}


@pytest.mark.parametrize('split', scenes.SPLITS)
def test_detection_data_has_not_changed(digits, split):
    means = [
        cv2.imread(str(path)).mean() for path in sorted((digits / split).iterdir())
    ]
    np.testing.assert_allclose(means, MEAN_PIXELS[split], atol=0.05)
    if not cv2.__version__.startswith('5.'):
        pytest.skip('the outlines were recorded with OpenCV 5, which warps differently')
    content = (digits / 'annotations' / f'instances_{split}.json').read_bytes()
    assert hashlib.sha256(content).hexdigest() == INSTANCES_SHA256[split]


def test_other_seed_gives_other_scenes(digits, tmp_path):
    write_digits(tmp_path / 'other', seed=1, num_train=1, num_val=1, progress=False)
    other = files(tmp_path / 'other')
    for split in scenes.SPLITS:
        assert other[f'{split}/000000.png'] != files(digits)[f'{split}/000000.png']


def test_scene_does_not_depend_on_number_of_scenes(digits, tmp_path):
    write_digits(tmp_path / 'few', num_train=3, num_val=2, progress=False)
    few, many = files(tmp_path / 'few'), files(digits)
    images = [name for name in few if name.endswith('.png')]
    # The image, its panoptic and its semantic map.
    assert len(images) == 3 * 5
    assert all(few[name] == many[name] for name in images)


def test_scenes_of_another_size_have_digits_inside(tmp_path):
    out = tmp_path / 'small'
    settings = dict(num_train=3, num_val=1, image_size=48, progress=False)
    assert write_digits(out, **settings)
    assert not write_digits(out, **settings)
    assert writer.read_json(out / 'settings.json')['image_size'] == 48
    for path in (out / 'train').iterdir():
        assert cv2.imread(str(path)).shape == (48, 48, 3)
    coco = writer.read_json(out / 'annotations/instances_train.json')
    assert {(image['height'], image['width']) for image in coco['images']} == {(48, 48)}
    for each in coco['annotations']:
        x, y, width, height = each['bbox']
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 48
    # The largest digit must fit.
    with pytest.raises(ValueError, match='image_size must be at least 48'):
        write_digits(out, image_size=47)


def test_finished_data_is_kept_and_replaced_for_other_settings(tmp_path):
    out = tmp_path / 'digits'
    settings = dict(num_train=2, num_val=1, progress=False)
    assert write_digits(out, **settings)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert not write_digits(out, **settings)
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert write_digits(out, **(settings | dict(num_train=1)))
    assert len(list((out / 'train').iterdir())) == 1
    assert writer.read_json(out / 'settings.json')['num_train'] == 1


@pytest.mark.parametrize('earlier', [False, True])
def test_interrupted_writing_leaves_folder_as_it_was(tmp_path, monkeypatch, earlier):
    out = tmp_path / 'data' / 'digits'
    if earlier:
        write_digits(out, num_train=1, num_val=1, progress=False)
    before = files(out) if earlier else {}

    def interrupt(*args, **kwargs):
        if split_of(args[0]) == 'val':
            raise KeyboardInterrupt
        return compose(*args, **kwargs)

    # All train scenes are written when the first validation scene interrupts.
    val_states = [scenes.scene_rng(0, 'val', i).bit_generator.state for i in range(4)]

    def split_of(rng):
        return 'val' if rng.bit_generator.state in val_states else 'train'

    compose = scenes.compose_scene
    with monkeypatch.context() as patch:
        patch.setattr(scenes, 'compose_scene', interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_digits(out, num_train=3, num_val=2, progress=False)
    assert files(out) == before
    assert [path.name for path in out.parent.iterdir() if path.is_dir()] == (
        ['digits'] if earlier else []
    )
    assert write_digits(out, num_train=3, num_val=2, progress=False)


def test_concurrent_writers_write_once(tmp_path):
    def write(_):
        return write_digits(tmp_path / 'digits', num_train=3, num_val=1, progress=False)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(4))) == 1


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    stale = tmp_path / '.digits.partial-killed'
    (stale / 'train').mkdir(parents=True)
    write_digits(tmp_path / 'digits', num_train=1, num_val=1, progress=False)
    assert not stale.exists()


def test_incomplete_settings_file_counts_as_missing(digits, tmp_path):
    (tmp_path / writer.SETTINGS_FILE).write_text('{"seed": 0, "num_')
    assert writer.read_json(tmp_path / writer.SETTINGS_FILE) is None
    assert writer.read_json(digits / writer.SETTINGS_FILE)['seed'] == 0


def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path / 'thesis.tex').write_text('')
    with pytest.raises(FileExistsError, match='other files than the digits data'):
        write_digits(tmp_path, num_train=1, num_val=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


@pytest.mark.parametrize(
    'wrong, message',
    [
        (dict(seed=-1), 'seed must be at least 0'),
        (dict(num_train=0), 'num_train must be at least 1'),
        (dict(num_val=0.5), 'num_val must be a whole number'),
    ],
)
def test_invalid_arguments_raise(tmp_path, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        write_digits(tmp_path / 'digits', **wrong)
    assert not list(tmp_path.iterdir())


def test_command_line_writes_data_once(tmp_path, capsys):
    arguments = f'--out {tmp_path}/digits --num-train 2 --num-val 1 --no-backbone'
    command.main(arguments.split())
    assert '2 train and 1 val scenes written to' in capsys.readouterr().out
    command.main(arguments.split())
    assert '2 train and 1 val scenes were already in' in capsys.readouterr().out
    settings = json.loads((tmp_path / 'digits' / 'settings.json').read_text())
    assert settings['num_train'] == 2


def test_empty_mask_raises():
    with pytest.raises(ValueError, match='no true pixel'):
        writer.describe_mask(np.zeros((4, 4), bool))
