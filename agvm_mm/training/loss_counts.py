"""What the losses of a model are divided by, seen from outside.

Heads divide their losses by the positives of a micro-batch, so the mean over several
micro-batches is not the loss of one batch with the same images. They do it in two
places, and both are open to others without a change of the heads:

- A loss module is called with ``avg_factor``, or takes a mean itself. A forward hook of
  torch scales its output.
- ``reduce_mean`` of MMDetection averages a count over the ranks. Heads import it by
  name, but it finds ``torch.distributed`` in its own module, where another object can
  stand for it.

Which of these depend on the images, a model's own losses on small random images tell.
"""

import copy
import inspect
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModel
from torch import Tensor, nn

from agvm_mm.training.random_images import SIZE, random_batches
from agvm_mm.training.update import seed_cpu

REDUCED = 'reduce_mean'
"""Name of all calls of MMDetection's function."""
near = partial(math.isclose, rel_tol=1e-5)
"""Return whether two numbers are equal up to rounding; heads count in float32."""

EPSILON = torch.finfo(torch.float32).eps

RANDOM = nn.Dropout, nn.Dropout2d, nn.MultiheadAttention
"""Modules that draw random numbers."""

Visit = Callable[[str, Any], Any]
"""Takes the name of a loss module and its normalizer; returns the one to use."""


class Examination(NamedTuple):
    """What small random images tell about a model.

    Attributes:
        modules: Loss modules with a normalizer that depends on the images.
        calls: Calls in a micro-batch of those that differ from call to call.
        per_image: Mean normalizers of an image, by the name of the module; where calls
            differ, by ``name#call``.
        per_call: Those that are the same for each image, as boxes that are sampled. A
            micro-batch without a call, as without positives, has none to count.
        is_one: Whether all losses are divided by the same number.
        terms: Losses that are divided by one of them.
        unreached: Losses that still depend on how images are divided.
    """

    modules: tuple[str, ...]
    calls: dict[str, int]
    per_image: dict[str, float]
    per_call: tuple[str, ...]
    is_one: bool
    terms: tuple[str, ...]
    unreached: tuple[str, ...]

    def modules_of(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the loss modules of a model by name."""
        return {name: model.get_submodule(name) for name in self.modules}


def loss_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model that take ``avg_factor``, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if 'avg_factor' not in inspect.signature(module.forward).parameters:
            continue
        if not any(name.startswith(f'{outer}.') for outer in found):
            found[name] = module
    return found


def own_normalizer(module: nn.Module, given: Mapping[str, Any]) -> Any:
    """Return what a loss divides by, up to a constant factor; None if by nothing.

    ``given`` are the arguments of its call.
    """
    reduction = given.get('reduction_override') or getattr(module, 'reduction', 'mean')
    if reduction != 'mean':
        return None
    own = given.get('avg_factor')
    if own is None:
        prediction, target = list(given.values())[:2]
        own = prediction.numel()
        if getattr(module, 'avg_non_ignore', False):
            ignored = given.get('ignore_index')
            if ignored is None:
                ignored = getattr(module, 'ignore_index', None)
            own = (target != (-100 if ignored is None else ignored)).sum()
    # Sums of float32 counts would lose bits.
    return own.detach().double().reshape(()) if isinstance(own, Tensor) else own


def _scale(
    name: str,
    visit: Visit,
    module: nn.Module,
    args: tuple,
    kwargs: dict,
    output: Tensor | dict[str, Tensor],
) -> Tensor | dict[str, Tensor] | None:
    """Replace the normalizer of a loss, as a forward hook."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    own = own_normalizer(module, given)
    if own is None:
        return None
    used = visit(name, own)
    if used is own:
        return None
    # The toolboxes divide by a sum with this number, also by 0.
    factor = (own + EPSILON) / used
    if isinstance(output, dict):  # Seesaw's has two parts.
        return {key: _times(part, factor) for key, part in output.items()}
    return _times(output, factor)


def _times(loss: Tensor, factor: Tensor | float) -> Tensor:
    return loss * (factor.to(loss.dtype) if isinstance(factor, Tensor) else factor)


def one_rank(visit: Visit) -> SimpleNamespace:
    """Return what stands for ``torch.distributed`` where ``reduce_mean`` looks for it.

    Each rank keeps its own count, so that no rank waits for another.
    """

    def all_reduce(tensor: Tensor, op: Any = None) -> None:
        if tensor.numel() != 1:
            raise ValueError(
                f'reduce_mean got {tensor.numel()} numbers at once, which normalizers='
                "'average' and 'update' do not know; use normalizers='micro_batch'"
            )
        own = tensor.detach().double().reshape(())
        with torch.no_grad():
            tensor.fill_(visit(REDUCED, own))

    return SimpleNamespace(
        ReduceOp=SimpleNamespace(SUM=None),
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 1,
        all_reduce=all_reduce,
    )


@contextmanager
def intercept(modules: Mapping[str, nn.Module], visit: Visit) -> Iterator[None]:
    """Let each normalizer of loss modules go through ``visit`` in this context."""
    handles = [
        module.register_forward_hook(partial(_scale, name, visit), with_kwargs=True)
        for name, module in modules.items()
    ]
    # It is there if the model has a head of MMDetection.
    source = sys.modules.get('mmdet.utils.dist_utils')
    ranks = getattr(source, 'dist', None)
    if ranks is not None:
        source.dist = one_rank(visit)
    try:
        yield
    finally:
        if ranks is not None:
            source.dist = ranks
        for handle in handles:
            handle.remove()


def check_reduce_mean() -> None:
    """Raise a RuntimeError if ``reduce_mean`` of MMDetection is not as expected."""
    source = sys.modules.get('mmdet.utils.dist_utils')
    if source is None:
        return
    seen: list[float] = []
    with intercept({}, lambda name, own: (seen.append(float(own)), 5.0)[1]):
        found = source.reduce_mean(torch.tensor([3.0]))
    if seen != [3.0] or found.tolist() != [5.0]:
        raise RuntimeError(
            'reduce_mean of this MMDetection does not use torch.distributed as that of '
            "3.3 does; use normalizers='micro_batch'"
        )


@contextmanager
def kept_generators() -> Iterator[None]:
    """Context after which all random numbers continue as before."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class _Probe:
    """Copy of a model on the CPU, and its losses on small random images."""

    def __init__(self, model: BaseModel) -> None:
        self.batches = random_batches(model)
        # On a GPU a label that a loss does not expect would end the process. A teacher,
        # which is no submodule, follows `to` only.
        self.model = copy.deepcopy(model).to('cpu')
        self.model.train()
        for module in self.model.modules():
            # Batch normalization, DropPath and DropBlock, each of any package.
            named = hasattr(module, 'running_mean') or hasattr(module, 'drop_prob')
            if named or isinstance(module, RANDOM):
                module.eval()
            # Larger images have more pixels than OHEM keeps.
            for each in module, getattr(module, 'sampler', None):
                if hasattr(each, 'min_kept'):
                    each.min_kept = SIZE
        # It would pad or resize to images of the usual size.
        preprocessor = self.model.data_preprocessor
        small: dict[str, Any] = dict(batch_augments=None, size=None, size_divisor=SIZE)
        for name, value in small.items():
            if hasattr(preprocessor, name):
                setattr(preprocessor, name, value)

    def losses(self, batch: dict, visit: Visit, seed: int = 0) -> dict[str, float]:
        """Return the losses of a batch by name."""
        data = copy.deepcopy(batch)
        # Losses may keep what they have seen, as GHM's. Weights are not copied again.
        kept = {id(each): each for each in self.model.parameters()}
        model = copy.deepcopy(self.model, kept)
        modules = loss_modules(model)
        with kept_generators(), torch.no_grad(), intercept(modules, visit):
            seed_cpu(seed)
            data = model.data_preprocessor(data, True)
            _, values = model.parse_losses(model(**data, mode='loss'))
        return {
            name: float(value)
            for name, value in values.items()
            if 'loss' in name and name != 'loss'
        }

    def recorded(
        self, batch: dict, *, reduced: float = 1.0
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Return the losses and the normalizers by name; multiply reduced ones."""
        found: dict[str, list[float]] = defaultdict(list)

        def visit(name: str, own: Any) -> Any:
            found[name].append(float(own))
            return own * reduced if name == REDUCED else own

        return self.losses(batch, visit), found

    def planned(
        self,
        found: Examination,
        batch: dict,
        *,
        factors: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> dict[str, float]:
        """Return the losses with planned normalizers, some times a factor."""
        per_image, factors = found.per_image.items(), factors or {}
        plan = Plan(found, {k: v * factors.get(k, 1) for k, v in per_image})
        plan.start(len(batch['inputs']))
        return self.losses(batch, plan, seed)


def examine(model: BaseModel) -> Examination:
    """Find the normalizers of a model by its own losses on small random images.

    The model, its buffers and all random numbers stay as they are, and no rank waits
    for another.

    Args:
        model: Not wrapped.

    Raises:
        RuntimeError: If MMDetection's ``reduce_mean`` is not as expected.
        TypeError: If the model is of neither toolbox.
        Exception: What the model raises on random images.
    """
    check_reduce_mean()
    probe = _Probe(model)
    both = probe.batches[2]
    (_, one), (_, other), (losses, whole) = map(probe.recorded, probe.batches)
    # What follows from a reduced count is not counted again.
    _, doubled = probe.recorded(both, reduced=2.0)
    calls: dict[str, int] = {}
    counts: dict[str, tuple[float, float, float]] = {}
    varying: set[str] = set()
    for name in whole:
        # A head without positives may not call a loss.
        rows = [found[name] or [0.0] for found in (one, other, whole)]
        if name != REDUCED and doubled[name] != whole[name]:
            continue
        numbered = name == REDUCED or any(
            not near(value, row[0]) for row in rows for value in row
        )
        if numbered and len({len(row) for row in rows}) > 1:
            raise RuntimeError(
                f'{name} is called {len(rows[0])} to {len(rows[2])} times for a '
                "micro-batch, with several normalizers; use normalizers='micro_batch'"
            )
        for index, (a, b, ab) in enumerate(zip(*rows, strict=False)):
            constant = near(a, b) and near(ab, a)
            if constant or (index and not numbered):
                continue
            key = f'{name}#{index}' if numbered else name
            counts[key] = a, b, ab
            calls |= {name: len(whole[name])} if numbered else {}
            if not near(2 * a, ab) or not near(2 * b, ab):
                varying.add(key)
    if not varying:  # All losses are means over images.
        counts = {}
    per_image = {key: counts[key][2] / 2 for key in sorted(counts)}
    modules = {key.partition('#')[0] for key in counts} - {REDUCED}
    per_call = tuple(key for key in per_image if key not in varying)
    result = Examination(
        tuple(sorted(modules)), calls, per_image, per_call, False, (), ()
    )
    if counts:
        half = probe.planned(result, both, factors=dict.fromkeys(varying, 2.0))
        terms = [name for name in half if not near(half[name], losses[name])]
        # All losses are divided by the same number.
        first = next(iter(counts.values()))
        is_one = (
            varying == set(counts)
            and all(near(losses[name], 2 * half[name]) for name in half)
            and all(
                near(count * first[2], of_first * each[2])
                for each in counts.values()
                for count, of_first in zip(each, first, strict=True)
            )
        )
        result = result._replace(terms=tuple(terms), is_one=is_one)
    return result._replace(unreached=_unreached(probe, result, losses))


def clamped(model: BaseModel, found: Examination) -> set[str]:
    """Return the keys of reduced normalizers of which a head takes at least 1.

    The model, which is not wrapped, stays as it is.
    """
    probe = _Probe(model)
    both, reduced = probe.batches[2], [k for k in found.per_image if REDUCED in k]
    # Two images have a quarter, and then a half of one of them.
    low = {key: 0.125 / found.per_image[key] for key in reduced}
    losses = probe.planned(found, both, factors=low)
    return {
        key
        for key in reduced
        if probe.planned(found, both, factors=low | {key: 2 * low[key]}) == losses
    }


def _unreached(
    probe: _Probe, found: Examination, whole: Mapping[str, float]
) -> tuple[str, ...]:
    """Return losses of two images that are not the mean of the losses of each.

    ``whole`` are those of both images, with their own normalizers.
    """
    again = probe.planned(found, probe.batches[2], seed=1)
    parts = [probe.planned(found, batch) for batch in probe.batches[:2]]
    means = {name: sum(part.get(name, 0.0) for part in parts) / 2 for name in whole}
    return tuple(
        name
        for name, value in whole.items()
        # What a sampler draws depends on the images before. Sums are in float32.
        if near(value, again[name])
        and not math.isclose(value, means[name], rel_tol=3e-5)
    )


class Plan:
    """Counts normalizers, and replaces them by those of an image times the images.

    Args:
        found: Normalizers of the model.
        per_image: What to divide by, for an image, by key; None for the micro-batch's
            own. Defaults to None.
    """

    def __init__(
        self, found: Examination, per_image: Mapping[str, float] | None = None
    ) -> None:
        self._found = found
        self._per_image = per_image or {}
        self._calls: dict[str, int] = defaultdict(int)
        self._images = 0
        self.images = 0
        self.counts: dict[str, Any] = dict.fromkeys(found.per_image, 0.0)
        self.called = dict.fromkeys(found.per_call, 0)

    def start(self, images: int) -> None:
        """Begin a micro-batch."""
        self._calls.clear()
        self._images = images
        self.images += images

    def end(self) -> None:
        """End a micro-batch.

        Raises:
            RuntimeError: If it had other calls than those on random images.
        """
        for name, expected in self._found.calls.items():
            calls = self._calls[name]
            if calls != expected and (calls or name == REDUCED):
                raise RuntimeError(
                    f'{name} was called {calls} times for a micro-batch, but '
                    f'{expected} times on random images, so its normalizers are not '
                    "known; use normalizers='micro_batch'"
                )

    def __call__(self, name: str, own: Any) -> Any:
        index = self._calls[name]
        self._calls[name] += 1
        key = f'{name}#{index}' if name in self._found.calls else name
        if key not in self.counts:
            return own
        if index == 0 or key != name:
            self.counts[key] = self.counts[key] + own
            if key in self.called:
                self.called[key] += self._images
        # No image of earlier updates had any: 0.
        per_image = self._per_image.get(key)
        return per_image * self._images if per_image else own

    def means(self, model: nn.Module) -> dict[str, float]:
        """Return the mean normalizers of an image over all ranks.

        Those that were not called, and cannot be known, are left out.
        """
        device = next(model.parameters()).device
        images = [self.called.get(key, self.images) for key in self.counts]
        values = [*self.counts.values(), *images]
        sums = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device=device) for v in values]
        )
        all_reduce(sums)
        counts, images = sums.view(2, -1).tolist()
        rows = zip(self.counts, counts, images, strict=True)
        return {key: count / images for key, count, images in rows if images}
