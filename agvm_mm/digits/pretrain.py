"""A pretrained backbone for the digits configs, made on the spot.

The method's regime is a pretrained backbone under heads that start from nothing.
Here a ResNet with a linear layer on its pooled features learns to name single
digits on textured patches; only the training digits are used, so that a detector
that starts from it has never seen a validation digit.
"""

import importlib.util
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from agvm_mm.digits import scenes

CHECKPOINT_FILE = 'resnet18_w16.pth'
"""Name of the checkpoint within the folder of the data set."""

BACKBONE = dict(type='ResNet', depth=18, base_channels=16, norm_eval=False)
"""ResNet-18 at a quarter of its width, as in the digits configs."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

PATCH_SIZE = 48
"""Side of a patch, in pixels."""

# First element of the spawn keys: see scenes.py, whose streams are 0 to 2.
_PATCH_STREAMS = {'train': 3, 'val': 4}
_ORDER_STREAM = 5

# Raised whenever the same settings would give other weights than before.
_FORMAT_VERSION = 1


def pretrain_backbone(
    out,
    *,
    seed=0,
    num_patches=16384,
    epochs=4,
    batch_size=64,
    lr=0.1,
    progress=True,
):
    """Train the classifier and save its backbone, unless that was done already.

    The weights depend on the arguments only (and, in the last bits, on the
    number of threads and the version of torch).

    Args:
        out (str or Path): Folder for the checkpoint and, beside it, a JSON file
            with the settings and the accuracy. Usually that of the data set.
        seed (int): Seed of the data set: it decides which digits are for
            training, and seeds patches, weights and order.
        num_patches (int): Number of training patches.
        epochs (int): Passes over the training patches.
        batch_size (int): Patches per update.
        lr (float): Highest learning rate of the one-cycle schedule.
        progress (bool): Whether to show a progress bar.

    Returns:
        dict: ``checkpoint`` (Path), ``accuracy`` (share of patches with unseen
        digits that are named right, in [0, 1]) and ``trained`` (False if the
        checkpoint was there).
    """
    settings = dict(
        format_version=_FORMAT_VERSION,
        backbone=BACKBONE,
        seed=seed,
        num_patches=num_patches,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
    )
    checkpoint = Path(out) / CHECKPOINT_FILE
    record_file = checkpoint.with_suffix('.json')
    record = _read_record(checkpoint, record_file)
    if record is not None and record['settings'] == settings:
        return dict(checkpoint=checkpoint, accuracy=record['accuracy'], trained=False)

    images, labels = scenes.load_digits()
    digits = scenes.split_digits(labels, seed)
    train = make_patches(images, labels, digits['train'], num_patches, seed, 'train')
    val = make_patches(images, labels, digits['val'], 1024, seed, 'val')
    # The caller's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        model = build_classifier()
        train_classifier(
            model,
            *train,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            order=scenes.stream_rng(seed, _ORDER_STREAM),
            progress=progress,
        )
    accuracy = measure_accuracy(model, *val)

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    # The record vouches for the checkpoint: it goes first and comes back last.
    record_file.unlink(missing_ok=True)
    _replace(checkpoint, lambda path: torch.save(model.backbone.state_dict(), path))
    record = dict(settings=settings, accuracy=accuracy)
    text = json.dumps(record, indent=2) + '\n'
    _replace(record_file, lambda path: path.write_text(text))
    return dict(checkpoint=checkpoint, accuracy=accuracy, trained=True)


@contextmanager
def one_thread():
    """Keep torch to one thread.

    So small a network gains little by a second one, and threads that wait for one
    another crawl where other programs share the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class DigitClassifier(nn.Module):
    """A ResNet, global average pooling and a linear layer.

    Args:
        backbone (nn.Module): Returns feature maps, the last one with
            ``num_features`` channels.
        num_features (int): Channels of the last feature map.
    """

    def __init__(self, backbone, num_features):
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(num_features, len(scenes.CLASSES))
        self.register_buffer('mean', torch.tensor(PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer('std', torch.tensor(PIXEL_STD).view(3, 1, 1))

    def forward(self, patches):
        """Class scores ``(N, 10)`` of RGB patches ``(N, H, W, 3)``, uint8."""
        pixels = patches.permute(0, 3, 1, 2).float()
        features = self.backbone((pixels - self.mean) / self.std)[-1]
        return self.fc(features.mean((2, 3)))


def build_classifier():
    """A classifier with random weights on the ResNet of the toolbox that is there.

    MMDetection's and MMSegmentation's have the same layers under the same names.

    Raises:
        ImportError: If neither toolbox is installed.
    """
    settings = dict(BACKBONE)
    if importlib.util.find_spec('mmdet') is not None:
        from mmdet.models import ResNet
    elif importlib.util.find_spec('mmseg') is not None:
        from mmseg.models.backbones import ResNet

        # MMDetection's stem is as wide as the first stage unless told otherwise.
        settings['stem_channels'] = settings['base_channels']
    else:
        raise ImportError(
            'The pretrained backbone is a ResNet of MMDetection or MMSegmentation: '
            'install one of them, or leave it out with --no-backbone'
        )
    # By its class, not through a registry: a Runner of the other toolbox may have
    # set the default scope.
    settings.pop('type')
    # Without init_weights(): torch's initial values serve as well here, and
    # MMEngine would log how each tensor began.
    backbone = ResNet(**settings)
    return DigitClassifier(backbone, num_features=8 * BACKBONE['base_channels'])


def make_patches(images, labels, candidates, count, seed, split):
    """Draw textured patches with one digit each.

    Args:
        images (np.ndarray): All source digits, ``(N, 8, 8)`` in [0, 1].
        labels (np.ndarray): Their classes, ``(N,)``.
        candidates (np.ndarray): Indices of the source digits to use.
        count (int): Number of patches.
        seed (int): Seed of the data.
        split (str): ``'train'`` or ``'val'``.

    Returns:
        tuple[Tensor, Tensor]: RGB patches, ``(count, 48, 48, 3)``, uint8, and
        their classes, ``(count,)``, int64.
    """
    rng = scenes.stream_rng(seed, _PATCH_STREAMS[split])
    sources = rng.choice(candidates, count)
    patches = np.stack(
        [scenes.compose_patch(rng, images[i], size=PATCH_SIZE) for i in sources]
    )
    return torch.from_numpy(patches), torch.from_numpy(labels[sources])


def train_classifier(
    model, patches, labels, *, epochs, batch_size, lr, order, progress=True
):
    """Train with SGD, momentum 0.9 and a one-cycle learning rate, in place.

    Args:
        model (nn.Module): Classifier of uint8 patches.
        patches (Tensor): RGB patches, ``(N, H, W, 3)``, uint8.
        labels (Tensor): Their classes, ``(N,)``.
        epochs (int): Passes over the patches.
        batch_size (int): Patches per update.
        lr (float): Highest learning rate.
        order (np.random.Generator): Decides the order of the patches.
        progress (bool): Whether to show a progress bar.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    updates = epochs * -(-len(patches) // batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=updates, cycle_momentum=False
    )
    model.train()
    with tqdm(
        total=updates, desc='backbone', unit='update', disable=not progress
    ) as bar:
        for _ in range(epochs):
            shuffled = torch.from_numpy(order.permutation(len(patches)))
            for chosen in shuffled.split(batch_size):
                loss = F.cross_entropy(model(patches[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                bar.set_postfix(loss=f'{loss.item():.3f}', refresh=False)
                bar.update()


@torch.no_grad()
def measure_accuracy(model, patches, labels, batch_size=256):
    """Share of patches that are named right, in [0, 1], in evaluation mode."""
    model.eval()
    named = torch.cat([model(some).argmax(1) for some in patches.split(batch_size)])
    return (named == labels).float().mean().item()


def _read_record(checkpoint, record_file):
    if not checkpoint.is_file():
        return None
    try:
        return json.loads(record_file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _replace(path, write):
    """Write a file so that it is there as a whole or not at all."""
    partial = path.with_name(f'.{path.name}.partial-{os.getpid()}')
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
