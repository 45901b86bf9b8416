"""Hand-checked case: four replicas, two modules, one parameter each."""

import torch
from torch import nn

GRADIENTS = {
    'backbone': [(1, 0, 2), (0, 1, 2), (1, 1, 0), (-1, 0, 2)],
    'head': [(3, 1), (2, 2), (4, 1), (3, 0)],
}
# Computed by hand. LOCAL_SQ is the mean squared norm of the replicas' gradients, and
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


class GoldenModel(nn.Module):
    """Model whose gradients are those of one replica in ``GRADIENTS``."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ParameterList([nn.Parameter(torch.zeros(3).double())])
        self.head = nn.ParameterList([nn.Parameter(torch.zeros(2).double())])

    def forward(self, replica: int) -> torch.Tensor:
        """Return a loss that is linear in the parameters."""
        return sum(
            getattr(self, name)[0] @ torch.tensor(rows[replica]).double()
            for name, rows in GRADIENTS.items()
        )
