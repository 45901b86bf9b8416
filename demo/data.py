"""Command that writes the digits data: ``python -m demo.data``."""

import argparse
import time
from collections.abc import Sequence

from demo import pretrain_backbone, write_digits
from demo.scenes import IMAGE_SIZE


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, train the backbone and print where they are."""
    parser = argparse.ArgumentParser(
        prog='python -m demo.data',
        description='Write the scenes of handwritten digits with boxes, masks, '
        'panoptic and semantic maps, and train a small backbone on single digits. '
        'Existing data with the same settings is kept.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--out', default='data/digits', help='folder of the data set')
    add('--seed', type=int, default=0, help='random seed')
    add('--num-train', type=int, default=4096, help='number of train scenes')
    add('--num-val', type=int, default=512, help='number of val scenes')
    add('--image-size', type=int, default=IMAGE_SIZE, help='side of a scene in pixels')
    add('--no-backbone', action='store_true', help='do not train the backbone')
    args = parser.parse_args(argv)
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
