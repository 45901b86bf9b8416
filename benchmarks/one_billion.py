"""One update of the detector with one billion parameters, which no rank holds whole.

    python benchmarks/one_billion.py --ranks 2 --image-size 128

The network is built without memory for its parameters and divided by FSDP2; each rank
initializes its slices. Then one measured update runs on images of noise. Prints the
memory of each rank: what it holds of the parameters, and the peak of the process.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from common.memory import reset_peak, resident
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config

from agvm_mm.estimators.reductions import local
from agvm_mm.sharding.model import FullyShardedModel, parameters_on_meta
from gpu_check.detectors import noise_image
from gpu_check.ranks import Ranks
from gpu_check.tables import megabytes
from gpu_check.toy import make_wrapper

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/_base_/models/cascade-mask-rcnn_swin-1b_fpn.py'
OPTIMIZERS = {
    # No moments.
    'SGD': dict(type='SGD', lr=1e-4),
    'AdamW': dict(type='AdamW', lr=1e-4),
}


def build(blocks: int | None) -> FullyShardedModel:
    """Build the detector in slices; all ranks have to call this.

    Args:
        blocks: Blocks of the third stage of its Swin; None for all.
    """
    register_all_modules()
    settings = Config.fromfile(CONFIG).model
    if blocks is not None:
        settings.backbone.depths[2] = blocks
    torch.manual_seed(0)
    handle = parameters_on_meta()
    model = MODELS.build(settings)
    handle.remove()
    names = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ('SwinBlock', 'FPN', 'Shared2FCBBoxHead')
    ]
    return FullyShardedModel(model, names)


def update(settings: dict) -> dict:
    """Run one measured update on this rank, and return what it held."""
    before = resident('VmRSS')
    trained = build(settings['blocks'])
    model = trained.module
    wrapper = make_wrapper(
        model,
        OPTIMIZERS[settings['optimizer']],
        estimator='replicas',
        attach_to=trained,
    )
    generator = torch.Generator().manual_seed(dist.get_rank())
    shape = (settings['size'],) * 2
    pixels, sample = noise_image(generator, shape, classes=80)
    instances = sample.gt_instances
    masks = np.zeros((len(instances), *shape), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(
        masks, instances.bboxes.int().tolist(), strict=True
    ):
        mask[top:bottom, left:right] = 1
    instances.masks = BitmapMasks(masks, *shape)
    built = resident('VmRSS')
    built_peak = resident('VmHWM')
    reset_peak()
    values = trained.train_step(
        dict(inputs=[pixels], data_samples=[sample]), optim_wrapper=wrapper
    )
    parameters = list(model.parameters())
    return dict(
        parameters=sum(p.numel() for p in parameters),
        bytes_whole=sum(p.nbytes for p in parameters),
        bytes_held=sum(local(p).nbytes for p in parameters),
        before=before,
        built=built,
        built_peak=built_peak,
        peak=resident('VmHWM'),
        loss=float(values['loss']),
        variances=wrapper.agvm.variances,
        finite=all(local(p).isfinite().all().item() for p in parameters),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the update and print what each rank held."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--ranks', type=int, default=2)
    parser.add_argument('--image-size', type=int, default=128, help='in pixels')
    parser.add_argument('--optimizer', choices=OPTIMIZERS, default='SGD')
    parser.add_argument('--blocks', type=int, help='of the third stage; fewer layers')
    args = parser.parse_args(arguments)
    settings = dict(size=args.image_size, optimizer=args.optimizer, blocks=args.blocks)
    ranks = Ranks.with_own_gpus(args.ranks)
    by_rank = ranks.run(update, settings)
    first = by_rank[0]
    print(
        f'{first["parameters"]:,} parameters in float32, '
        f'{megabytes(first["bytes_whole"])} MB; {ranks}, {args.optimizer}, one image '
        f'of {args.image_size} x {args.image_size} on each rank'
    )
    for rank, found in enumerate(by_rank):
        print(
            f'rank {rank}: holds {megabytes(found["bytes_held"])} MB of the '
            f'parameters; resident {megabytes(found["before"])} MB before, at most '
            f'{megabytes(found["built_peak"])} MB while it was built, '
            f'{megabytes(found["peak"])} MB in the update; loss {found["loss"]:.3f}'
        )
    phi = {name: round(value, 3) for name, value in first['variances'].items()}
    print(f'Phi {phi}; all parameters finite: {first["finite"]}')


if __name__ == '__main__':
    main()
