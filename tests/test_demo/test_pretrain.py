"""Tests of the pretrained backbone: it fits the digits configs."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from demo import pretrain, pretrain_backbone, scenes

pytestmark = pytest.mark.evidence

CONFIGS = Path(__file__).parents[2] / 'configs'
SHORT = dict(num_patches=128, epochs=1, batch_size=32, progress=False)


@pytest.fixture(scope='module')
def model_config():
    return Config.fromfile(CONFIGS / '_base_/models/faster-rcnn_r18_w16_fpn.py').model


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp('backbone')
    return pretrain_backbone(out, **SHORT)


def test_checkpoint_matches_backbone_of_config(trained, model_config):
    weights = torch.load(trained['checkpoint'], weights_only=True)
    backbone = MODELS.build(model_config.backbone)
    loaded = backbone.load_state_dict(weights, strict=True)
    assert not loaded.missing_keys and not loaded.unexpected_keys


def test_config_loads_checkpoint(trained, model_config):
    settings = model_config.backbone.copy()
    settings.init_cfg = dict(type='Pretrained', checkpoint=str(trained['checkpoint']))
    backbone = MODELS.build(settings)
    backbone.init_weights()
    weights = torch.load(trained['checkpoint'], weights_only=True)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_pixels_are_normalized_as_in_config(model_config):
    settings = model_config.data_preprocessor
    assert tuple(settings.mean) == pretrain.PIXEL_MEAN
    assert tuple(settings.std) == pretrain.PIXEL_STD
    assert settings.bgr_to_rgb


def test_same_seed_gives_same_weights_and_keeps_random_state(trained, tmp_path):
    state = torch.random.get_rng_state()
    again = pretrain_backbone(tmp_path, **SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again['accuracy'] == trained['accuracy']
    first, second = (torch.load(t['checkpoint']) for t in (trained, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_existing_backbone_is_kept(trained):
    out = trained['checkpoint'].parent
    before = trained['checkpoint'].stat().st_mtime_ns
    kept = pretrain_backbone(out, **SHORT)
    assert not kept['trained'] and kept['accuracy'] == trained['accuracy']
    assert trained['checkpoint'].stat().st_mtime_ns == before


@pytest.mark.parametrize('lost', ['.pth', '.json'])
def test_incomplete_result_is_trained_again(tmp_path, monkeypatch, lost):
    def stop(*args, **kwargs):
        raise RuntimeError('training begins')

    pretrain_backbone(tmp_path, **SHORT)
    (tmp_path / pretrain.CHECKPOINT_FILE).with_suffix(lost).unlink()
    monkeypatch.setattr(pretrain, 'train_classifier', stop)
    with pytest.raises(RuntimeError, match='training begins'):
        pretrain_backbone(tmp_path, **SHORT)


def test_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def fail(state, path):
        Path(path).write_bytes(b'half a file')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(KeyboardInterrupt):
        pretrain_backbone(tmp_path, **SHORT)
    assert not list(tmp_path.iterdir())


def test_each_split_uses_its_own_digits(monkeypatch, tmp_path):
    used = {}
    make_patches = pretrain.make_patches

    def record(images, labels, candidates, count, seed, split):
        used[split] = set(candidates)
        return make_patches(images, labels, candidates, count, seed, split)

    monkeypatch.setattr(pretrain, 'make_patches', record)
    pretrain_backbone(tmp_path, seed=5, **SHORT)
    _, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, 5)
    assert used == {split: set(digits[split]) for split in scenes.SPLITS}


def test_training_lowers_loss():
    """Check that a few updates on a few patches halve the loss."""
    images, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, 0)['train'][:100]
    patches, targets = pretrain.make_patches(images, labels, digits, 64, 0, 'train')
    torch.manual_seed(0)
    model = pretrain.build_classifier()

    def loss():
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(patches), targets).item()

    before = loss()
    pretrain.train_classifier(
        model,
        patches,
        targets,
        epochs=10,
        batch_size=32,
        lr=0.05,
        order=scenes.stream_rng(0, 99),
        progress=False,
    )
    assert loss() < before / 2


def test_record_contains_settings_and_accuracy(trained):
    record = json.loads(trained['checkpoint'].with_suffix('.json').read_text())
    assert record['accuracy'] == trained['accuracy']
    assert record['settings']['backbone'] == pretrain.BACKBONE
