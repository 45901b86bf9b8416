"""Checks of what a user writes, with messages that name setting, value and mend."""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from inspect import Parameter
from numbers import Integral, Real


def check_number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    integer: bool = False,
) -> None:
    """Check that a setting is a finite number within bounds.

    Args:
        name (str): The setting's name, for the message.
        value (object): What the user gave.
        low (float, optional): Smallest value allowed.
        above (float, optional): The value must be larger than this.
        high (float, optional): Largest value allowed.
        below (float, optional): The value must be smaller than this.
        integer (bool): Whether it has to be a whole number. Defaults to False.

    Raises:
        TypeError: If it is not a number (a bool is none), or not a whole one.
        ValueError: If it is out of bounds, infinite or NaN.
    """
    kind = Integral if integer else Real
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = 'a whole number' if integer else 'a number'
        raise TypeError(f'{name} must be {expected}, got {value!r}')
    bounds = []
    if low is not None:
        bounds.append((value >= low, f'at least {low}'))
    if above is not None:
        bounds.append((value > above, f'more than {above}'))
    if high is not None:
        bounds.append((value <= high, f'at most {high}'))
    if below is not None:
        bounds.append((value < below, f'less than {below}'))
    if not math.isfinite(value) or not all(holds for holds, _ in bounds):
        wanted = ' and '.join(text for _, text in bounds) or 'finite'
        raise ValueError(f'{name} must be {wanted}, got {value!r}')


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that a setting is one of a few names.

    Raises:
        ValueError: If it is not; the message lists the names.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(
            f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}.'
            f'{did_you_mean(value, choices)}'
        )


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest known name, or '' if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ''


def argument_names(target: Callable) -> set[str] | None:
    """Names of the keyword arguments that a function or a class takes.

    An ``__init__`` with ``**kwargs`` hands them to the next one of the class's bases,
    whose names count as well.

    Args:
        target (Callable): A function or a class.

    Returns:
        set[str] or None: The names; None if it takes any.
    """
    functions = [target]
    if isinstance(target, type):
        functions = [
            vars(kind)['__init__']
            for kind in target.__mro__
            if '__init__' in vars(kind)
        ]
    names: set[str] = set()
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        names |= {p.name for p in parameters if p.kind in named}
        if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
            return names - {'self'}
    return None


def check_arguments(
    name: str, given: Iterable[str], known: set[str], settings: Iterable[str] = ()
) -> None:
    """Check the names of keyword arguments.

    Args:
        name (str): Of the class or function, for the message.
        given (Iterable[str]): The names that the user gave.
        known (set[str]): Those that there are.
        settings (Iterable[str]): Further names that may be suggested.

    Raises:
        TypeError: If one is not known; the message suggests the nearest.
    """
    for wrong in given:
        if wrong not in known:
            raise TypeError(
                f'{name} has no argument {wrong!r}; it has: '
                f'{", ".join(sorted(known))}.'
                f'{did_you_mean(wrong, known.union(settings))}'
            )


def suggests_arguments(*settings: str) -> Callable:
    """Decorator: a misspelt argument is refused with the nearest that there is.

    Python's own message names neither the arguments nor the class that a config
    meant, where a subclass hands them on.

    Args:
        settings (str): Further keys of the same part of a config, which somebody else
            takes out before; only suggested.

    Returns:
        Callable: Decorates a class, whose ``__init__`` it wraps, or a function.

    Raises:
        TypeError: If what is decorated takes any argument.
    """

    def decorate(target: Callable) -> Callable:
        known = argument_names(target)
        if known is None:
            raise TypeError(f'{target.__name__} takes any argument')
        call = target.__init__ if isinstance(target, type) else target

        @functools.wraps(call)
        def checked(*args, **kwargs):
            check_arguments(target.__name__, kwargs, known, settings)
            return call(*args, **kwargs)

        if not isinstance(target, type):
            return checked
        target.__init__ = checked
        return target

    return decorate
