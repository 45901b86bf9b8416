"""Tests of scenes: their content, and that it depends on their own seed only."""

import numpy as np
import pytest

from demo import scenes


@pytest.fixture(scope='module')
def source():
    images, labels = scenes.load_digits()
    return images, labels, scenes.split_digits(labels, 0)


def compose(source, seed, split, index):
    images, labels, digits = source
    rng = scenes.scene_rng(seed, split, index)
    return scenes.compose_scene(rng, images, labels, digits[split])


def test_split_is_disjoint_and_complete(source):
    _, labels, digits = source
    train, val = set(digits['train']), set(digits['val'])
    assert not train & val
    assert train | val == set(range(len(labels)))
    assert 0.19 < len(val) / len(labels) < 0.21
    for split in scenes.SPLITS:
        assert set(labels[digits[split]]) == set(range(10))


def test_scenes_use_digits_of_their_split_only(source):
    _, labels, digits = source
    for split in scenes.SPLITS:
        for index in range(20):
            scene = compose(source, 0, split, index)
            assert set(scene.sources) <= set(digits[split])
            assert scene.labels == tuple(labels[list(scene.sources)])


def test_scene_is_complete(source):
    size = scenes.IMAGE_SIZE
    for index in range(50):
        scene = compose(source, 0, 'train', index)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.labels) <= scenes.DIGITS_PER_SCENE[1]
        # Every digit is visible, and every marked instance is listed.
        assert set(np.unique(scene.instances)) == set(range(len(scene.labels) + 1))
        visible = np.bincount(scene.instances.ravel())
        assert visible.min() >= 15
        assert scene.textures.max() < len(scenes.TEXTURES)


def test_digits_overlap_little(source, monkeypatch):
    kept, inked = 0, 0

    def render(rng, digit, height):
        nonlocal inked
        ink = original(rng, digit, height)
        inked += (ink >= 0.5).sum()
        return ink

    original = scenes.render_digit
    monkeypatch.setattr(scenes, 'render_digit', render)
    for index in range(50):
        kept += (compose(source, 0, 'train', index).instances > 0).sum()
    assert 0.97 < kept / inked <= 1


def test_digits_contrast_with_background(source):
    """Check that the brightness of ink differs from that of its surroundings."""
    contrasts = []
    for index in range(30):
        scene = compose(source, 0, 'val', index)
        gray = scene.image.mean(2)
        for number in range(1, len(scene.labels) + 1):
            inside = scene.instances == number
            rows, columns = np.where(inside)
            box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            outside = gray[box][scene.instances[box] == 0]
            contrasts.append(abs(gray[inside].mean() - outside.mean()))
    assert np.percentile(contrasts, 5) > 25


def test_same_seed_gives_same_scene(source):
    first, again = (compose(source, 3, 'train', 7) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.instances, again.instances)
    assert first.sources == again.sources


@pytest.mark.parametrize('other', [(4, 'train', 7), (3, 'val', 7), (3, 'train', 8)])
def test_other_seed_split_or_index_gives_other_scene(source, other):
    image = compose(source, 3, 'train', 7).image
    assert (compose(source, *other).image != image).mean() > 0.5


def test_every_texture_is_used(source):
    seen = {
        int(kind)
        for index in range(20)
        for kind in np.unique(compose(source, 0, 'train', index).textures)
    }
    assert seen == set(range(len(scenes.TEXTURES)))


def test_unknown_split_raises():
    with pytest.raises(ValueError, match="split must be one of .* got 'test'"):
        scenes.scene_rng(0, 'test', 0)
