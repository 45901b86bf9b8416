"""Forecast from measured noise scales: what a batch saves, where mu settles, time."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from agvm_mm.method.modulator import raw_multiplier
from agvm_mm.method.noise_scale import (
    ALL,
    extra_images,
    predicted_variance,
    relative_updates,
    saved_updates,
)
from agvm_mm.report.logs import NOISE_KEY, module_curves, read_run

NOT_RESOLVED = 'not resolved'


class NoiseScales(NamedTuple):
    """Measured noise scales of a network in images; NaN where not resolved.

    Attributes:
        modules: Noise scale of each module.
        whole: Noise scale of the whole network.
        source: Where they are from, as text.
    """

    modules: dict[str, float]
    whole: float
    source: str


class Cost(NamedTuple):
    """Cost of a training at one batch.

    Attributes:
        batch: Images of an update.
        gpus: GPUs.
        updates: Updates of the training.
        images_per_second: Throughput of each GPU.
    """

    batch: float
    gpus: int
    updates: float
    images_per_second: float

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together. The last update of an epoch counts as full."""
        return self.updates * self.batch / self.images_per_second / 3600

    @property
    def hours(self) -> float:
        """Hours of the training, without validation."""
        return self.gpu_hours / self.gpus


def noise_of_run(path: str | Path) -> NoiseScales:
    """Read the last noise scales in the log of a run, a JSON log or a work folder.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If it has no noise scales.
    """
    curves = module_curves(read_run(path), NOISE_KEY)
    if ALL not in curves:
        raise ValueError(
            f"{path} has no '{NOISE_KEY}<module>' in its log: was VarianceSyncHook "
            '(of this version) on, and did the run reach its begin?'
        )
    modules = {name: values[-1] for name, (_, values) in curves.items()}
    last = max(updates[-1] for updates, _ in curves.values())
    return NoiseScales(modules, modules.pop(ALL), f'at step {last:,} of {path}')


def noise_of_file(path: str | Path) -> NoiseScales:
    """Read what ``tools/noise_scale.py`` has written with ``--json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another file.
    """
    try:
        content = json.loads(Path(path).read_text())
        scales = {
            name: (module['noise_scale'] or {'value': math.nan})['value']
            for name, module in content['modules'].items()
        }
        whole, images = scales.pop(ALL), content['images']
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f'{path} is not a file of tools/noise_scale.py --json; the log of a run '
            'goes to --log'
        ) from None
    return NoiseScales(scales, whole, f'on {images:,} images, in {path}')


def check_same_modules(noise: NoiseScales, modules: Iterable[str]) -> None:
    """Check that noise scales are those of the modules that a config trains.

    Raises:
        ValueError: If they are of other modules.
    """
    if set(noise.modules) != set(modules):
        raise ValueError(
            f'the config trains the modules {", ".join(modules)}; the noise scales '
            f'{noise.source} are of {", ".join(noise.modules)}: measure this model '
            'with this split (optim_wrapper.modules)'
        )


def settled_multipliers(
    batch: float,
    noise_scales: Mapping[str, float],
    anchor: str,
    ratio_bounds: tuple[float, float],
) -> dict[str, float]:
    """Return where each mu settles at a batch: that of the predicted variances.

    It is NaN for a module whose noise scale or anchor is not resolved (NaN). Without a
    module of the anchor's name, which a config with AGVM always has, there is none.
    """
    if anchor not in noise_scales:
        return {}
    phi = {name: predicted_variance(batch, n) for name, n in noise_scales.items()}
    return {
        name: raw_multiplier(phi[anchor], variance, ratio_bounds)
        for name, variance in phi.items()
    }


def neighbors(planned: Cost, noise_scale: float) -> Iterator[Cost]:
    """Yield the cost of half and of double the batch, each trained as far.

    Each GPU keeps its images and its speed, so the number of GPUs follows the batch. An
    odd number of GPUs cannot be halved and stays, with half of the work for each. The
    noise scale is that of the whole network, in images.
    """
    fewest = planned.updates / relative_updates(planned.batch, noise_scale)
    half = planned.gpus // 2 if planned.gpus % 2 == 0 else planned.gpus
    for batch, gpus in (planned.batch / 2, half), (2 * planned.batch, 2 * planned.gpus):
        updates = fewest * relative_updates(batch, noise_scale)
        yield Cost(batch, gpus, updates, planned.images_per_second)


def describe_noise(noise: NoiseScales, batch: int) -> list[str]:
    """Format the noise scales and what a batch saves against half of it."""
    scales = {**noise.modules, 'whole network': noise.whole}
    lines = [f'noise scale {name}: {format_images(n)}' for name, n in scales.items()]
    lines[-1] += f', {noise.source}'
    saved = NOT_RESOLVED
    if not math.isnan(noise.whole):
        saved = (
            f'{saved_updates(batch, noise.whole):.0%} of the updates (50% at most) for '
            f'{extra_images(batch, noise.whole):.0%} more images, against batch '
            f'{batch / 2:,g}, each with its best learning rate'
        )
    return [*lines, f'saved       {saved}']


def describe_multipliers(multipliers: Mapping[str, float], *, acts: bool) -> str:
    """Format where the multipliers settle, with AGVM in the run (``acts``) or not."""
    values = ', '.join(
        f'{name} {NOT_RESOLVED if math.isnan(mu) else format(mu, ".2f")}'
        for name, mu in multipliers.items()
    )
    settle = 'settles' if acts else 'with AGVM, would settle'
    return f'mu          {settle} at: {values}'


def describe_time(planned: Cost, noise_scale: float | None) -> list[str]:
    """Format hours and GPU-hours of a batch and, if possible, of its neighbors.

    The noise scale is that of the whole network: NaN if not resolved, None if it was
    not measured.
    """
    speed = format_number(planned.images_per_second)
    line = (
        f'time        {format_hours(planned)}, at {speed} images/s on each GPU, '
        'without validation'
    )
    if noise_scale is None:
        return [line]
    if math.isnan(noise_scale):
        return [line, f'            of other batches: {NOT_RESOLVED}']
    return [
        line,
        '            to get as far, with GPUs in proportion to the batch if possible:',
        *(
            f'            batch {cost.batch:,g} on {cost.gpus} GPU(s): about '
            f'{cost.updates:,.0f} updates, {format_hours(cost)}'
            for cost in neighbors(planned, noise_scale)
        ),
    ]


def format_hours(cost: Cost) -> str:
    """Format hours and GPU-hours."""
    hours, gpu_hours = format_number(cost.hours), format_number(cost.gpu_hours)
    return f'{hours} hours, {gpu_hours} GPU-hours'


def format_images(noise_scale: float) -> str:
    """Format a noise scale in images."""
    if math.isnan(noise_scale):
        return NOT_RESOLVED
    return f'{format_number(noise_scale)} images'


def format_number(number: float) -> str:
    """Format a number above 0 with three digits, or all digits before the point."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'
