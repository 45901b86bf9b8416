"""Adam's rescaling against torch."""

import pytest
import torch

from agvm_mm.estimators.preconditioner import AdamPreconditioner


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
    gradient = gradients[-1]
    first, second, both = preconditioner.half_norms(
        [p], [gradient / 4], [gradient], (0.25, 0.75)
    )
    (replica,) = preconditioner.replica_norms([p], [gradient])
    (direction,) = preconditioner.directions([p], [gradient])
    name = 'max_exp_avg_sq' if amsgrad else 'exp_avg_sq'
    shared = optimizer.state[p][name].clone() if steps else torch.zeros(6)
    before = p.detach().clone()
    p.grad = gradient
    optimizer.step()
    # torch corrects the bias of v, which is a common factor.
    correction = (1 - 0.9 ** (steps + 1)) ** 0.5
    step = (before - p.detach()).norm()
    torch.testing.assert_close(first[0] * correction, step)
    torch.testing.assert_close(second[0] * correction, step)
    torch.testing.assert_close(both[0] * correction, 2 * step)
    torch.testing.assert_close(direction, gradient / shared.sqrt())
    torch.testing.assert_close(replica, direction.norm())
