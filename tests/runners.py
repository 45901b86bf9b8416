"""MMEngine Runner on small float64 data."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset
from toy import ToyDetector, make_images

MODELS.register_module(module=ToyDetector, force=True)


@DATASETS.register_module(force=True)
class ImageDataset(Dataset):
    """Data set of noisy regression data, one (inputs, targets) pair per image."""

    def __init__(self, images: int) -> None:
        self.tensors = make_images(images)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self.tensors
        return inputs[index], targets[index]


def make_runner(
    work_dir: Path,
    optim_wrapper: dict,
    *,
    images: int,
    batch_size: int,
    train_cfg: dict,
    hooks: Sequence[dict] = (),
    sampler: str = 'DefaultSampler',
    shuffle: bool = True,
    param_scheduler: list[dict] | None = None,
    checkpoint: dict | None = None,
    model: str | nn.Module = 'ToyDetector',
    dataset: str = 'ImageDataset',
    num_workers: int = 0,
    randomness: dict | None = None,
    loader: dict | None = None,
    **kwargs: Any,
) -> Runner:
    """Build a Runner, which uses the gloo group of this rank if there is one.

    ``loader`` has further keys of the data loader.
    """
    return Runner(
        model=dict(type=model) if isinstance(model, str) else model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(type=dataset, images=images),
            sampler=dict(type=sampler, shuffle=shuffle),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=dict(type='default_collate'),
        )
        | (loader or {}),
        optim_wrapper=optim_wrapper,
        train_cfg=train_cfg,
        param_scheduler=param_scheduler,
        custom_hooks=list(hooks),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=checkpoint or dict(type='CheckpointHook', interval=-1),
        ),
        randomness=dict(seed=0) if randomness is None else randomness,
        experiment_name=f'{work_dir.name}-{uuid.uuid4().hex}',
        **kwargs,
    )
