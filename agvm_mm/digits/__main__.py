"""Make the digits data: ``python -m agvm_mm.digits``."""

import argparse
import time

from agvm_mm.digits.scenes import SPLITS
from agvm_mm.digits.writer import write_digits


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m agvm_mm.digits',
        description='Write the scenes of handwritten digits with boxes, masks, '
        'panoptic and semantic maps, and train a small backbone on single digits. '
        'What is there already, with the same settings, is kept.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', default='data/digits', help='folder of the data set')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything')
    for split, number in zip(SPLITS, (4096, 512), strict=True):
        parser.add_argument(
            f'--num-{split}', type=int, default=number, help=f'{split} scenes'
        )
    parser.add_argument(
        '--no-backbone', action='store_true', help='leave the backbone out'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Write the data and the backbone, and say where they lie."""
    args = parse_args(argv)
    start = time.perf_counter()
    written = write_digits(
        args.out, seed=args.seed, num_train=args.num_train, num_val=args.num_val
    )
    print(
        f'{args.num_train} train and {args.num_val} val scenes '
        f'{"written to" if written else "were already in"} {args.out} '
        f'({time.perf_counter() - start:.1f} s)'
    )
    if args.no_backbone:
        return
    # Needs mmcv and MMDetection or MMSegmentation, which the scenes do not.
    from agvm_mm.digits.pretrain import pretrain_backbone

    start = time.perf_counter()
    result = pretrain_backbone(args.out, seed=args.seed)
    print(
        f'backbone {"saved as" if result["trained"] else "was already in"} '
        f'{result["checkpoint"]}: names {result["accuracy"]:.1%} of unseen digits '
        f'right ({time.perf_counter() - start:.1f} s)'
    )


if __name__ == '__main__':
    main()
