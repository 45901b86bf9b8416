"""Check training on the GPUs of this machine, and the cost of an update."""

import argparse
import sys
from pathlib import Path

from gpu_check.environment import missing_requirements


def main(argv: list[str] | None = None) -> int:
    """Run the check, or print what it needs, and return the exit status."""
    parser = argparse.ArgumentParser(prog='python -m gpu_check', description=__doc__)
    parser.add_argument('--out', type=Path, help='JSON file for all figures')
    args = parser.parse_args(argv)
    missing = missing_requirements()
    if missing:
        print(f'The GPU check needs {", ".join(missing)}.')
        return 1
    # It imports the packages that may be missing.
    from gpu_check.command import run_check

    return run_check(args.out)


if __name__ == '__main__':
    sys.exit(main())
