"""Forecast from measured noise scales: what a batch saves, where mu settles, time."""

import json
import math
from collections.abc import Iterable, Mapping
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
        micro_batch: Images of a replica; None if not known. Defaults to None.
    """

    modules: dict[str, float]
    whole: float
    source: str
    micro_batch: int | None = None


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
        replica = content['images_per_replica']
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f'{path} is not a file of tools/noise_scale.py --json; the log of a run '
            'goes to --log'
        ) from None
    source = f'on {images:,} images in replicas of {replica:,}, in {path}'
    return NoiseScales(scales, whole, source, replica)


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
    return (
        f'mu          {"settles" if acts else "with AGVM, would settle"} at: {values}'
    )


def describe_time(
    batch: int, updates: int, hours: float, gpus: int, noise_scale: float | None
) -> list[str]:
    """Format the hours of a run, and of half and double the batch to get as far.

    The GPUs have the same throughput at every batch. The noise scale is that of the
    whole network in images: NaN if not resolved, None if it was not measured, and only
    the run itself is formatted.
    """
    lines = [
        f'time        {format_number(hours)} hours, {format_number(hours * gpus)} '
        'GPU-hours, without validation'
    ]
    if noise_scale is None:
        return lines
    if math.isnan(noise_scale):
        return [*lines, f'            of other batches: {NOT_RESOLVED}']
    for factor in (0.5, 2):
        needed = relative_updates(batch * factor, noise_scale)
        share = needed / relative_updates(batch, noise_scale)
        lines.append(
            f'            as far at batch {batch * factor:,g}: about '
            f'{updates * share:,.0f} updates, '
            f'{format_number(hours * gpus * share * factor)} GPU-hours'
        )
    return lines


def format_images(noise_scale: float) -> str:
    """Format a noise scale in images."""
    if math.isnan(noise_scale):
        return NOT_RESOLVED
    return f'{format_number(noise_scale)} images'


def format_number(number: float) -> str:
    """Format a number above 0 with three digits, or all digits before the point."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'
