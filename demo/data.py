"""Command that writes the digits data: ``python -m demo.data``."""

import argparse
import time
from collections.abc import Sequence

from demo import pretrain_backbone, write_digits
from demo.scenes import IMAGE_SIZE, SPLITS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m demo.data',
        description='Write the scenes of handwritten digits with boxes, masks, '
        'panoptic and semantic maps, and train a small backbone on single digits. '
        'Existing data with the same settings is kept.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', default='data/digits', help='folder of the data set')
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    for split, number in zip(SPLITS, (4096, 512), strict=True):
        parser.add_argument(
            f'--num-{split}', type=int, default=number, help=f'number of {split} scenes'
        )
    parser.add_argument(
        '--image-size', type=int, default=IMAGE_SIZE, help='side of a scene in pixels'
    )
    parser.add_argument(
        '--no-backbone', action='store_true', help='do not train the backbone'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, train the backbone and print where they are."""
    args = parse_args(argv)
    start = time.perf_counter()
    written = write_digits(
        args.out,
        seed=args.seed,
        num_train=args.num_train,
        num_val=args.num_val,
        image_size=args.image_size,
    )
    print(
        f'{args.num_train} train and {args.num_val} val scenes '
        f'{"written to" if written else "were already in"} {args.out} '
        f'({time.perf_counter() - start:.1f} s)'
    )
    if args.no_backbone:
        return
    start = time.perf_counter()
    result = pretrain_backbone(args.out, seed=args.seed)
    print(
        f'backbone {"saved to" if result["trained"] else "was already in"} '
        f'{result["checkpoint"]}: {result["accuracy"]:.1%} accuracy on unseen digits '
        f'({time.perf_counter() - start:.1f} s)'
    )


if __name__ == '__main__':
    main()
