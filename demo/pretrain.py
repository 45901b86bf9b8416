"""A pretrained backbone for the digits configs.

The method is meant for a pretrained backbone under heads with random weights. Here a
ResNet with a linear layer on its pooled features learns to classify single digits on
textured patches. It is trained on the training digits only: a detector that starts
from it has never seen a validation digit.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from agvm_mm.training.atomic import replaced_when_whole
from demo import scenes
from demo.writer import read_json, write_json

CHECKPOINT_FILE = 'resnet18_w16.pth'
"""Name of the checkpoint in the folder of the data set."""

BACKBONE = dict(type='ResNet', depth=18, base_channels=16, norm_eval=False)
"""ResNet-18 at a quarter of its width, as in the digits configs."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

PATCH_SIZE = 48
"""Side of a patch, in pixels."""

# First element of the spawn keys: see scenes.py, whose streams are 0 to 2.
_PATCH_STREAMS = {'train': 3, 'val': 4}
_ORDER_STREAM = 5

# Increase it when the same settings give other weights than before.
_FORMAT_VERSION = 1


def pretrain_backbone(
    out: str | Path,
    *,
    seed: int = 0,
    num_patches: int = 16384,
    epochs: int = 4,
    batch_size: int = 64,
    lr: float = 0.1,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a digit classifier and save its backbone, unless that was done before.

    The weights depend on the arguments only (and, in the last bits, on the version of
    torch).

    Args:
        out: Folder for the checkpoint and a JSON file with the settings and the
            accuracy. Usually that of the data set.
        seed: Seed of the data set: it selects the training digits, and seeds patches,
            weights and order.
        num_patches: Number of training patches.
        epochs: Passes over the training patches.
        batch_size: Patches per update.
        lr: Highest learning rate of the one-cycle schedule.
        progress: Whether to show a progress bar.

    Returns:
        ``checkpoint`` (its path), ``accuracy`` (fraction of patches with unseen
        digits that are classified correctly) and ``trained`` (False if the
        checkpoint existed).
    """
    options = dict(epochs=epochs, batch_size=batch_size, lr=lr)
    settings = dict(
        format_version=_FORMAT_VERSION,
        backbone=BACKBONE,
        seed=seed,
        num_patches=num_patches,
        **options,
    )
    checkpoint = Path(out) / CHECKPOINT_FILE
    record_file = checkpoint.with_suffix('.json')
    record = read_json(record_file) if checkpoint.is_file() else None
    trained = record is None or record['settings'] != settings
    if trained:
        model, accuracy = _train(seed, num_patches, progress=progress, **options)
        record = dict(settings=settings, accuracy=accuracy)
        # A record means a complete checkpoint: remove it first, write it last.
        record_file.unlink(missing_ok=True)
        with replaced_when_whole(checkpoint) as path:
            torch.save(model.backbone.state_dict(), path)
        with replaced_when_whole(record_file) as path:
            write_json(path, record)
    return dict(checkpoint=checkpoint, accuracy=record['accuracy'], trained=trained)


class DigitClassifier(nn.Module):
    """ResNet with global average pooling and a linear layer."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        # The last feature map has 8 times the channels of the first.
        self.fc = nn.Linear(8 * BACKBONE['base_channels'], len(scenes.CLASSES))
        self.register_buffer('mean', torch.tensor(PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer('std', torch.tensor(PIXEL_STD).view(3, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Return class scores ``(N, 10)`` of RGB patches ``(N, H, W, 3)``, uint8."""
        pixels = patches.permute(0, 3, 1, 2).float()
        features = self.backbone((pixels - self.mean) / self.std)[-1]
        return self.fc(features.mean((2, 3)))


def build_classifier() -> DigitClassifier:
    """Build a classifier with random weights on the ResNet of the installed toolbox.

    MMDetection's and MMSegmentation's have the same layers under the same names.

    Raises:
        ImportError: If neither toolbox is installed.
    """
    settings = dict(BACKBONE)
    if importlib.util.find_spec('mmdet') is not None:
        from mmdet.models import ResNet
    elif importlib.util.find_spec('mmseg') is not None:
        from mmseg.models.backbones import ResNet

        # MMDetection's stem is as wide as the first stage by default.
        settings['stem_channels'] = settings['base_channels']
    else:
        raise ImportError(
            'The pretrained backbone is a ResNet of MMDetection or MMSegmentation: '
            'install one of them, or skip the backbone with --no-backbone'
        )
    # By its class, not through a registry: a Runner of the other toolbox may have
    # set the default scope.
    settings.pop('type')
    # Without init_weights(): torch's initial values work as well here, and MMEngine
    # would log the initialization of each tensor.
    return DigitClassifier(ResNet(**settings))


def make_patches(
    images: np.ndarray,
    labels: np.ndarray,
    candidates: np.ndarray,
    count: int,
    seed: int,
    split: str,
) -> tuple[Tensor, Tensor]:
    """Draw RGB patches, ``(count, 48, 48, 3)``, uint8, of one digit each, and classes.

    See scenes.py for the arguments.
    """
    rng = scenes.stream_rng(seed, _PATCH_STREAMS[split])
    sources = rng.choice(candidates, count)
    patches = np.stack(
        [scenes.compose_patch(rng, images[i], size=PATCH_SIZE) for i in sources]
    )
    return torch.from_numpy(patches), torch.from_numpy(labels[sources])


def train_classifier(
    model: nn.Module,
    patches: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    order: np.random.Generator,
    progress: bool = True,
) -> None:
    """Train with SGD, momentum 0.9 and a one-cycle learning rate, in place."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    orders = (torch.from_numpy(order.permutation(len(patches))) for _ in range(epochs))
    batches = [chosen for each in orders for chosen in each.split(batch_size)]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=len(batches), cycle_momentum=False
    )
    model.train()
    bar = tqdm(batches, desc='backbone', unit='update', disable=not progress)
    for chosen in bar:
        loss = F.cross_entropy(model(patches[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        bar.set_postfix(loss=f'{loss.item():.3f}', refresh=False)


@torch.no_grad()
def measure_accuracy(model: nn.Module, patches: Tensor, labels: Tensor) -> float:
    """Return the fraction of correctly classified patches, in evaluation mode."""
    model.eval()
    predicted = torch.cat([model(chunk).argmax(1) for chunk in patches.split(256)])
    return (predicted == labels).float().mean().item()


def _train(
    seed: int, num_patches: int, **options: Any
) -> tuple[DigitClassifier, float]:
    """Return a classifier trained from a seed, and its accuracy on unseen digits."""
    images, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, seed)
    train = make_patches(images, labels, digits['train'], num_patches, seed, 'train')
    val = make_patches(images, labels, digits['val'], 1024, seed, 'val')
    order = scenes.stream_rng(seed, _ORDER_STREAM)
    threads = torch.get_num_threads()
    # A network this small gains little from a second thread, and threads that wait for
    # each other are slow where other programs share the cores.
    torch.set_num_threads(1)
    try:
        # Leave the caller's random state as it is.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_classifier()
            train_classifier(model, *train, order=order, **options)
    finally:
        torch.set_num_threads(threads)
    return model, measure_accuracy(model, *val)
