"""One update of each family of stock models, with AGVM and without.

A family is the configs with the same type of model and the same modules. A reduced
model of it is trained on two micro-batches of small random images, from random
weights: the gradients must be those that MMEngine's own wrapper gets, and every
module's variance Phi and multiplier mu must be finite.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import set_random_seed
from torch import Tensor

from agvm_mm.estimators import build_estimator
from agvm_mm.method.modulator import MeasurementSchedule
from agvm_mm.optim.agvm import Measurement
from agvm_mm.report.plan import in_float32, quiet, use_toolbox
from agvm_mm.training.variance_sync import explain_rejected
from stock.images import make_images, take
from stock.stock import Result, add_agvm, load, one_rank, reason_of

MICRO_BATCHES = 2
IMAGES = 2
"""Images of a micro-batch. BatchNorm needs several where it sees 1 x 1 pixels."""
SIZES = (64, 128, 320)
"""Heights and widths of the images, tried in this order."""
CANDIDATES = 3
"""Configs of a family that are tried."""
LIMITS = dict(
    num=16,
    nms_pre=100,
    nms_post=100,
    max_num=100,
    max_per_img=100,
    num_queries=50,
    num_proposals=50,
)
"""Largest values of settings that say how many boxes or queries are trained on."""
OUTCOMES = {
    'equal': "the gradients are MMEngine's, Phi and mu are finite",
    'different': 'the gradients are others',
    'rejected': 'Phi is not finite, or the anchor had no gradient',
    'failed': 'AGVM raises an error',
    'not run': 'the stock model does not train in this environment',
}


class Family(NamedTuple):
    """Configs with the same type of model and the same modules."""

    model: str
    modules: tuple[str, ...]


class Update(NamedTuple):
    """One update of a config.

    Attributes:
        config: Name of the config.
        outcome: A key of ``OUTCOMES``.
        reason: Why it is not 'equal'.
        size: Height and width of the images.
        idle: Modules without a gradient.
    """

    config: str
    outcome: str
    reason: str = ''
    size: int = 0
    idle: tuple[str, ...] = ()


def by_family(results: Iterable[Result]) -> dict[Family, list[Result]]:
    """Return the configs of each family with the stock optimizer, smallest first."""
    families: dict[Family, list[Result]] = {}
    for result in results:
        if result.outcome == 'same':
            family = Family(result.family, result.modules)
            families.setdefault(family, []).append(result)
    return {
        family: sorted(families[family], key=lambda result: result.parameters)
        for family in sorted(families)
    }


def update_family(results: Iterable[Result]) -> Update:
    """Run one update of the smallest config of a family that trains, or the smallest.

    The configs come smallest first.
    """
    sizes = {result.parameters: result for result in reversed(list(results))}
    smallest = sorted(sizes)[:CANDIDATES]
    return _first_run(one_update(sizes[size].config) for size in smallest)


def one_update(config: str) -> Update:
    """Run one update of a config with AGVM and without.

    The images are the smallest of ``SIZES`` on which the stock model trains.
    """
    with one_rank(), quiet(), _one_thread():
        return _first_run(
            _compare(load(config), size)._replace(config=config, size=size)
            for size in SIZES
        )


def _first_run(updates: Iterator[Update]) -> Update:
    """Return the first update that was run, or else the first."""
    first = next(updates)
    tried = itertools.chain([first], updates)
    return next((each for each in tried if each.outcome != 'not run'), first)


def _compare(cfg: Config, size: int) -> Update:
    cfg.model = small_model(cfg.model, size)
    # The norm that clipping divides by depends, in its last bit, on the order of the
    # parameters in the optimizer.
    cfg.optim_wrapper.clip_grad = None
    cfg.optim_wrapper.accumulative_counts = MICRO_BATCHES
    try:
        model = build_model(cfg)
        # The first update changes more than the state dict, such as counters.
        same_model = copy.deepcopy(model)
        images = make_images(cfg, MICRO_BATCHES * IMAGES, size)
        stock = build_optim_wrapper(model, in_float32(cfg.optim_wrapper))
        expected = gradients_of_update(model, stock, images)
    except Exception as error:  # Whatever the toolbox raises is the reason.
        return Update('', 'not run', reason_of(error))
    if not all(gradient.isfinite().all() for gradient in expected.values()):
        return Update('', 'not run', 'the gradients of the stock model are not finite')
    add_agvm(cfg)
    try:
        wrapper = build_optim_wrapper(same_model, in_float32(cfg.optim_wrapper))
        agvm = wrapper.make_agvm(same_model)
        estimator = build_estimator(
            'halves',
            agvm.preconditioner,
            agvm.parameters,
            same_model,
            accumulation=MICRO_BATCHES,
        )
        measured: list[Measurement] = []
        agvm.attach(estimator, MeasurementSchedule(interval=1), measured.append)
        found = gradients_of_update(same_model, wrapper, images)
    except Exception as error:
        return Update('', 'failed', reason_of(error))
    return _judge(expected, found, *measured)


def _judge(
    expected: dict[str, Tensor], found: dict[str, Tensor], measured: Measurement
) -> Update:
    different = [
        name
        for name in expected | found
        if name not in expected
        or name not in found
        or not torch.equal(expected[name], found[name])
    ]
    if different:
        return Update('', 'different', f'{len(different)}, such as {different[0]}')
    variances, multipliers = measured.variances, measured.multipliers
    if not measured.accepted:
        reason, _ = explain_rejected(variances, 'backbone')
        return Update('', 'rejected', reason)
    if not all(map(math.isfinite, multipliers.values())):
        return Update('', 'rejected', f'mu is not finite: {multipliers}')
    idle = tuple(name for name in multipliers if name not in variances)
    return Update('', 'equal', idle=idle)


def small_model(settings: ConfigDict, size: int) -> ConfigDict:
    """Return the settings of a model that trains fast on a CPU on images of a size.

    It keeps its layers, but gets random weights and few boxes.
    """
    model = _shrink(settings)
    preprocessor = model.get('data_preprocessor', {})
    # They pad or resize to images of the usual size.
    preprocessor.pop('batch_augments', None)
    if 'size' in preprocessor:
        preprocessor.size = (size, size)
    return model


def _shrink(settings: Any) -> Any:
    if isinstance(settings, dict):
        return ConfigDict(
            {
                key: min(value, LIMITS[key])
                if key in LIMITS and isinstance(value, int)
                else _shrink(value)
                for key, value in settings.items()
                if key != 'pretrained' and not _is_pretrained(value)
            }
        )
    if isinstance(settings, list | tuple):
        return type(settings)(
            _shrink(value) for value in settings if not _is_pretrained(value)
        )
    return settings


def _is_pretrained(settings: Any) -> bool:
    """Return whether settings are those of weights to load (``init_cfg``)."""
    if not isinstance(settings, dict) or 'checkpoint' not in settings:
        return False
    # PVT does not name the type.
    return settings.get('type', 'Pretrained') == 'Pretrained'


@contextmanager
def _one_thread() -> Iterator[None]:
    """Add in the same order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config with random weights, the same at each call.

    It has BatchNorm for SyncBN.
    """
    use_toolbox(cfg)
    set_random_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.train()  # A detector with a teacher returns nothing.
    # Of a run that begins; MMEngine's RuntimeInfoHook does it.
    hub = MessageHub.get_current_instance()
    hub.update_info_dict(dict(epoch=0, iter=0))
    return model


def gradients_of_update(
    model: BaseModel, wrapper: OptimWrapper, images: dict[str, Any]
) -> dict[str, Tensor]:
    """Train a model for one update; return its gradients at the step by name.

    Raises:
        RuntimeError: If there was no step.
    """
    found: dict[str, Tensor] = {}

    def record(*_: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()

    wrapper.optimizer.register_step_pre_hook(record)
    wrapper.initialize_count_status(model, 0, MICRO_BATCHES)
    for index in range(MICRO_BATCHES):
        batch = take(images, slice(index * IMAGES, (index + 1) * IMAGES))
        set_random_seed(index)
        # Models change their data.
        model.train_step(copy.deepcopy(batch), wrapper)
    if not found:
        raise RuntimeError('the optimizer did not step, or without gradients')
    return found
