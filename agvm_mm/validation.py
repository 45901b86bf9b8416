"""Checks of user settings whose messages name the setting, its value and the fix."""

import difflib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter
from numbers import Integral, Real
from typing import Any

from mmengine.registry import OPTIMIZERS

BOUNDS = dict(
    low=(operator.ge, 'at least'),
    above=(operator.gt, 'more than'),
    high=(operator.le, 'at most'),
    below=(operator.lt, 'less than'),
)
"""Comparison of a value with each bound, and its name in messages."""


def check_number(
    name: str, value: object, *, integer: bool = False, **bounds: float
) -> None:
    """Check that a setting is a finite number, or a whole one, within bounds.

    The bounds ``low`` and ``high`` are allowed themselves, ``above`` and ``below`` are
    not.

    Raises:
        TypeError: If the value is not a number or not a whole one; a bool is not
            accepted as a number.
        ValueError: If the value is out of bounds, infinite or NaN.
    """
    kind = Integral if integer else Real
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = 'a whole number' if integer else 'a number'
        raise TypeError(f'{name} must be {expected}, got {value!r}')
    wanted, holds = [], math.isfinite(value)
    for key, limit in bounds.items():
        compare, text = BOUNDS[key]
        wanted.append(f'{text} {limit}')
        holds = holds and compare(value, limit)
    if not holds:
        listed = ' and '.join(wanted) or 'finite'
        raise ValueError(f'{name} must be {listed}, got {value!r}')


def check_flag(name: str, value: object) -> None:
    """Raise a TypeError if a setting is not True or False."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {value!r}')


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ValueError, which lists the allowed names, for any other setting."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(
            f'{name} must be one of {", ".join(map(repr, choices))}, got {value!r}.'
            f'{did_you_mean(value, choices)}'
        )


def type_name(kind: str | Callable | None) -> str:
    """Return the name of a ``type`` in a config, without scope or package.

    The type is a name ('BN'), one with a scope ('mmdet.X', 'mmdet::X') or a package
    ('torch.optim.SGD'), or a class, as in configs in pure Python. '' if it is None.
    """
    if isinstance(kind, str):
        return kind.replace(':', '.').rpartition('.')[2]
    return getattr(kind, '__name__', '' if kind is None else repr(kind))


def package_of(kind: str | Callable) -> str:
    """Return the scope or package of a ``type`` in a config, '' for a plain name."""
    if not isinstance(kind, str):
        kind = kind.__module__
    elif kind == type_name(kind):
        return ''
    return kind.replace(':', '.').partition('.')[0]


def resolve_type(kind: str | Callable | None, registry: Any) -> Callable | None:
    """Return the class of a ``type`` in a config, None if a name is not registered."""
    if not isinstance(kind, str):
        return kind
    # The default scope may be that of a toolbox.
    with registry.switch_scope_and_registry(None) as registry:
        return registry.get(kind.replace('::', '.'))


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'X'?" for the nearest known name, or '' if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ''


@functools.cache
def argument_names(target: Callable) -> set[str] | None:
    """Return the keyword arguments of a function or class; None if it takes any.

    An ``__init__`` with ``**kwargs`` is taken to pass them to the next base class, so
    the arguments of that class are included.
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
    name: str,
    given: Iterable[str],
    known: set[str],
    settings: Iterable[str] = (),
    advice: Mapping[str, str] | None = None,
) -> None:
    """Check the names of keyword arguments that a class or function is given.

    Raises:
        TypeError: If a name is not known. The message has the ``advice`` for it, or
            suggests the nearest one that is known or a key of ``settings``.
    """
    for wrong in given:
        if wrong not in known:
            nearest = did_you_mean(wrong, known.union(settings))
            sentence = (advice or {}).get(wrong)
            raise TypeError(
                f'{name} has no argument {wrong!r}; it has: '
                f'{", ".join(sorted(known))}.{f" {sentence}" if sentence else nearest}'
            )


def suggests_arguments(
    *settings: str, advice: Mapping[str, str] | None = None
) -> Callable:
    """Return a decorator that refuses unknown arguments and suggests the nearest name.

    Python's own message lists no arguments, and it names a base class if a subclass
    passes the argument on. A decorated class has its ``__init__`` wrapped.

    Args:
        settings: Further keys of the same part of a config that are removed before
            the call. They are suggested but not accepted.
        advice: Sentences for certain unknown names, instead of a suggestion.

    Raises:
        TypeError: If the decorated function or class accepts any argument.
    """

    def decorate(target: Callable) -> Callable:
        own = argument_names(target)
        if own is None:
            raise TypeError(f'{target.__name__} accepts any argument')
        is_class = isinstance(target, type)
        call = target.__init__ if is_class else target

        @functools.wraps(call)
        def checked(*args: Any, **kwargs: Any) -> Any:
            # A subclass may have more arguments.
            owner = type(args[0]) if is_class else target
            known = argument_names(owner)
            if known is not None:
                check_arguments(owner.__name__, kwargs, own | known, settings, advice)
            return call(*args, **kwargs)

        if not is_class:
            return checked
        target.__init__ = checked
        return target

    return decorate


def check_optimizer_type(settings: Mapping | None) -> None:
    """Check that the optimizer of a config exists.

    MMEngine's constructor ends with "None is not a callable object".

    Raises:
        KeyError: If the type in ``optim_wrapper.optimizer`` is not registered.
    """
    kind = (settings or {}).get('type')
    if kind is not None and resolve_type(kind, OPTIMIZERS) is None:
        registries = [OPTIMIZERS, *OPTIMIZERS.children.values()]
        known = {name for registry in registries for name in registry.module_dict}
        raise KeyError(
            f'optim_wrapper.optimizer.type={kind!r} is not registered; there are: '
            f'{", ".join(sorted(known))}.{did_you_mean(kind, known)}'
        )
