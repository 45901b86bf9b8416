"""Hand-checked case: four replicas, two modules, one parameter each.

The expected values were computed by hand, not by this package.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gpu_check.ranks import rank_device
from gpu_check.toy import make_wrapper

GRADIENTS = {
    'backbone': [(1, 0, 2), (0, 1, 2), (1, 1, 0), (-1, 0, 2)],
    'head': [(3, 1), (2, 2), (4, 1), (3, 0)],
}
# LOCAL_SQ is the mean squared norm of the replicas' gradients, and
# MEAN_SQ is the squared norm of their mean.
LOCAL_SQ = {'backbone': 4.25, 'head': 11.0}
MEAN_SQ = {'backbone': 2.5625, 'head': 10.0}
VARIANCES = {
    'halves': {'backbone': 0.0513167019, 'head': 0.0783646249},
    'replicas': {'backbone': 0.36, 'head': 0.0645161290},
}
SIGNAL_AND_NOISE = {
    # G_A . G_B and |G_A - G_B|^2 for the halves; 4 images.
    'halves': {'backbone': (2.25, 1.25), 'head': (9.5, 2.0)},
    # (4 T - L) / 3 and 4 (L - T) / 3.
    'replicas': {'backbone': (2.0, 2.25), 'head': (29 / 3, 4 / 3)},
}
RATIO = {'halves': 0.6548496, 'replicas': 5.5799290}
RAW_MULTIPLIER = {'halves': 0.8092278, 'replicas': 2.3621873}
MULTIPLIER = {'halves': 0.9942768, 'replicas': 1.0408656}
RANKS = 4
# Half a unit of the last digit above, and rounding.
TOLERANCES = {'Phi': 1e-9, 'mu': 1e-7}


class GoldenModel(nn.Module):
    """Model whose gradients are those of one replica in ``GRADIENTS``."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ParameterList([nn.Parameter(torch.zeros(3).double())])
        self.head = nn.ParameterList([nn.Parameter(torch.zeros(2).double())])

    def forward(self, replica: int) -> torch.Tensor:
        """Return a loss that is linear in the parameters."""
        return sum(
            parameter @ parameter.new_tensor(GRADIENTS[name.split('.')[0]][replica])
            for name, parameter in self.named_parameters()
        )


Golden = dict[str, tuple[dict[str, float], dict[str, float]]]
"""Phi and mu by module, for each estimator."""


def measure_golden() -> Golden:
    """Measure the case on this rank of four, on its device."""
    results = {}
    for estimator in VARIANCES:
        model = GoldenModel().to(rank_device())
        ddp = DistributedDataParallel(model)
        wrapper = make_wrapper(model, estimator=estimator, attach_to=ddp)
        with wrapper.optim_context(ddp):
            loss = ddp(dist.get_rank())
        wrapper.update_params(loss)
        results[estimator] = (wrapper.agvm.variances, wrapper.agvm.multipliers)
    return results


def golden_differences(by_rank: Sequence[Golden]) -> dict[str, float]:
    """Return the largest difference of all ranks' Phi and mu from those by hand."""
    phi, mu = [], []
    for results in by_rank:
        for estimator, (variances, multipliers) in results.items():
            expected = VARIANCES[estimator]
            phi += [variances[module] - value for module, value in expected.items()]
            expected = dict(backbone=1, head=MULTIPLIER[estimator])
            mu += [multipliers[module] - value for module, value in expected.items()]
    return {'Phi': largest(phi), 'mu': largest(mu)}


def largest(differences: Sequence[float]) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return np.abs(differences).max().item()
