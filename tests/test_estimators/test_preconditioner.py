"""Adam's rescaling against torch."""

import pytest
import torch

from agvm_mm.estimators.preconditioner import (
    AdamPreconditioner,
    adam_direction,
    adam_second_moment,
)


def test_adam_direction_equals_first_step_of_torch():
    # Without first moment: betas (0, beta2); bias correction is divided out.
    g = torch.randn(6, dtype=torch.float64)
    p = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    p.grad = g.clone()
    beta2, eps = 0.9, 1e-3
    optimizer = torch.optim.AdamW(
        [p], lr=1, betas=(0.0, beta2), eps=eps, weight_decay=0
    )
    optimizer.step()
    v = adam_second_moment(g, torch.zeros_like(g), beta2)
    corrected = v / (1 - beta2)
    torch.testing.assert_close(adam_direction(g, corrected, eps), -p.detach())
    torch.testing.assert_close(v, optimizer.state[p]['exp_avg_sq'])


@pytest.mark.parametrize('amsgrad', [False, True])
@pytest.mark.parametrize('steps', [0, 3])
def test_rescaled_half_is_the_step_of_torch(amsgrad, steps):
    # Gradients that shrink: with amsgrad the denominator stays that of the first.
    gradients = [10.0 ** (2 - i) * torch.randn(6).double() for i in range(steps + 1)]
    p = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [p], lr=1, betas=(0.0, 0.9), eps=0, weight_decay=0, amsgrad=amsgrad
    )
    for gradient in gradients[:-1]:
        p.grad = gradient
        optimizer.step()
    preconditioner = AdamPreconditioner(optimizer)
    half, _ = preconditioner.halves(p, ..., gradients[-1], gradients[-1])
    replica = preconditioner.replica(p, ..., gradients[-1])
    name = 'max_exp_avg_sq' if amsgrad else 'exp_avg_sq'
    shared = optimizer.state[p][name].clone() if steps else torch.zeros(6)
    before = p.detach().clone()
    p.grad = gradients[-1]
    optimizer.step()
    # torch corrects the bias of v, which is a common factor.
    correction = (1 - 0.9 ** (steps + 1)) ** 0.5
    torch.testing.assert_close(half * correction, before - p.detach())
    torch.testing.assert_close(replica, gradients[-1] / shared.sqrt())
