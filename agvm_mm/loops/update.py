"""One update of a large-batch loop: its seed and the weights of its losses."""

import random
from fractions import Fraction

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

from agvm_mm.engine import accumulative_counts


def seed_update(seed: int, update: int) -> None:
    """Make the random numbers of an update depend on its number only.

    A run that resumes before an update then draws the same numbers as a run that was
    not interrupted.

    Args:
        seed: Seed of the run.
        update: Number of the update, from 0.
    """
    (seed,) = np.random.SeedSequence([seed, update]).generate_state(1).tolist()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class WeightedOptimWrapper:
    """Optimizer wrapper as a model sees it during one micro-batch of an update.

    MMEngine gives each micro-batch the weight 1 / count. The last one of an epoch may
    have fewer images and gets a smaller weight here: an update follows the mean over
    its images. All other attributes are those of the wrapped optimizer wrapper.

    Args:
        optim_wrapper: The optimizer wrapper of the run.
        weight: Share of the micro-batch in the images of the update.
    """

    def __init__(self, optim_wrapper: OptimWrapper, weight: Fraction) -> None:
        self._optim_wrapper = optim_wrapper
        self._weight = weight

    def __getattr__(self, name: str) -> object:
        return getattr(self._optim_wrapper, name)

    def update_params(self, loss: Tensor, *args, **kwargs) -> None:
        """Run ``OptimWrapper.update_params`` on the weighted loss."""
        wrapper = self._optim_wrapper
        # OptimWrapper.scale_loss divides by the count. The fraction is exact, so
        # micro-batches of the same size leave the loss as it is.
        relative = float(self._weight * accumulative_counts(wrapper))
        # AGVM divides gradients by it.
        wrapper.loss_weight = float(self._weight)
        try:
            wrapper.update_params(loss * relative, *args, **kwargs)
        finally:
            wrapper.loss_weight = None
