"""A rule that many cases follow, as one test that names all that break it."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def for_each(cases: Iterable | Callable[[], Iterable]) -> Callable:
    """Run a test on each case and report all that fail, not only the first one.

    Args:
        cases: The values of the test's first parameter, or a function that returns
            them when the test runs, such as those that need a toolbox.
    """

    def decorate(test: Callable) -> Callable:
        _, *fixtures = inspect.signature(test).parameters.values()

        @functools.wraps(test)
        def run_all(**kwargs: Any) -> None:
            broken, number = {}, 0
            for case in cases() if callable(cases) else cases:
                number += 1
                try:
                    test(case, **kwargs)
                except Exception as error:
                    broken[str(case)] = error
            assert number, 'there is no case'
            if broken:
                lines = [
                    f'{case}: {type(error).__name__}: {error}'
                    for case, error in broken.items()
                ]
                summary = f'{len(broken)} of {number} cases fail'
                # With the traceback of the first.
                raise AssertionError('\n'.join([summary, *lines])) from next(
                    iter(broken.values())
                )

        # Pytest takes the other parameters for fixtures.
        run_all.__signature__ = inspect.Signature(fixtures)
        return run_all

    return decorate
