"""Baseline optimizers that AGVM is compared with: LARS, LAMB and PMD-LAMB.

They come from the package ``pytorch-optimizer``, which is imported only when a config
uses one of them. The AGVM wrappers refuse all three: AGVM scales the learning
rate of each module, while a trust ratio fixes the length of each layer's step whatever
the gradient variance is, so the two would counteract each other.

SAM, the fourth baseline of the paper, is not included. Its second gradient is computed
at other weights on the same images, so an accumulated update would have to run all of
its micro-batches twice; the loops load them one by one and keep none.
"""

from collections.abc import Iterable
from functools import partial
from types import ModuleType

from mmengine.registry import OPTIMIZERS
from torch.optim import Optimizer

from agvm_mm.validation import check_number, suggests_arguments


def _pytorch_optimizer(wanted_for: str) -> ModuleType:
    """Import ``pytorch_optimizer``, which takes seconds.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ImportError(
            f'{wanted_for} needs the package pytorch-optimizer 4; run '
            "pip install 'pytorch-optimizer>=4,<5'"
        ) from error
    return pytorch_optimizer


@OPTIMIZERS.register_module(name='BaselineLARS')
@suggests_arguments()
def build_lars(
    params: Iterable,
    lr: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    trust_coefficient: float = 1e-3,
) -> Optimizer:
    """Build LARS (You et al., 2017, arXiv 1708.03888): SGD with layerwise trust ratios.

        ratio    = trust_coefficient |w| / (|g| + weight_decay |w|)   (1 where |w| is 0)
        buffer  <- momentum buffer + ratio (g + weight_decay w)
        w       <- w - lr buffer

    One-dimensional parameters (biases, normalization) take plain momentum steps without
    ratio and weight decay. Only ``clip_grad`` of the optimizer wrapper clips gradients.
    Returns a ``pytorch_optimizer.LARS``.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate; much larger than for SGD, because the ratio is small.
        momentum: Momentum factor. Defaults to 0.9.
        weight_decay: Weight decay. Defaults to 1e-4.
        trust_coefficient: eta in the paper. Defaults to 1e-3.

    Raises:
        ImportError: If pytorch-optimizer is not installed.
    """
    return _pytorch_optimizer('BaselineLARS').LARS(
        params,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
        dampening=0.0,
        nesterov=False,
    )


@OPTIMIZERS.register_module(name='BaselineLAMB')
@suggests_arguments()
def build_lamb(
    params: Iterable,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Build LAMB (You et al., ICLR 2020, arXiv 1904.00962): Adam with a trust ratio.

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
        u  = m / (sqrt(v) + eps) + weight_decay w
        w <- w - lr min(|w|, 10) / |u| u              (ratio 1 where either is 0)

    for each parameter tensor, without bias correction, as in version 3 of the preprint.
    The trust ratio includes weight decay. Clipping inside pytorch-optimizer is off:
    only ``clip_grad`` of the optimizer wrapper clips gradients.
    Returns a ``pytorch_optimizer.Lamb``.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        betas: b1 and b2. Defaults to (0.9, 0.999).
        eps: Added to sqrt(v). Defaults to 1e-6.
        weight_decay: Weight decay. Defaults to 0.01.

    Raises:
        ImportError: If pytorch-optimizer is not installed.
    """
    return _pytorch_optimizer('BaselineLAMB').Lamb(
        params,
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        weight_decay=weight_decay,
        weight_decouple=False,
        pre_norm=False,
        max_grad_norm=0.0,
        # False would multiply the finished step by 1 / (1 - b1^t): the first steps
        # would be up to ten times as long as the trust ratio allows.
        adam_debias=True,
    )


@OPTIMIZERS.register_module(name='PMDLAMB')
@suggests_arguments()
def build_pmd_lamb(
    params: Iterable,
    lr: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    period: int = 100,
    moment_decay: float = 0.1,
) -> Optimizer:
    """Build LAMB whose moments decay periodically, so that old gradients weigh less.

    The idea is that of PMD-LAMB (Wang et al., *Large Batch Optimization for Object
    Detection: Training COCO in 12 Minutes*, ECCV 2020): with few large updates the
    moments contain gradients at weights of long ago. How much and how often they decay
    is a choice of this implementation: before the updates period, 2 period, 3 period,
    ... both moments are multiplied by ``moment_decay``, and then comes the step of
    :func:`build_lamb`, which explains the other arguments. ``moment_decay=1`` is LAMB,
    and 0 resets the moments.

    Args:
        period: Updates between two decays. Defaults to 100.
        moment_decay: Factor of a decay, in [0, 1]. Defaults to 0.1.

    Raises:
        ImportError: If pytorch-optimizer is not installed.
        ValueError: If a setting is out of range.

    Example:
        >>> optim_wrapper = dict(optimizer=dict(type='PMDLAMB', lr=0.005, period=100))
    """
    check_number('period', period, low=1, integer=True)
    check_number('moment_decay', moment_decay, low=0, high=1)
    optimizer = build_lamb(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
    # Not in the groups, whose settings a resumed run has from the checkpoint.
    optimizer.register_step_pre_hook(partial(decay_moments, period, moment_decay))
    return optimizer


def decay_moments(
    period: int, factor: float, optimizer: Optimizer, args: tuple, kwargs: dict
) -> None:
    """Multiply the moments before an update at the end of a period, as a step hook."""
    for group in optimizer.param_groups:
        done = group.get('step', 0)
        if not done or done % period:
            continue
        for parameter in group['params']:
            for moment in ('exp_avg', 'exp_avg_sq'):
                if moment in optimizer.state[parameter]:
                    optimizer.state[parameter][moment].mul_(factor)
