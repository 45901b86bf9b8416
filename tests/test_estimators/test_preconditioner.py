"""Adam's rescaling against torch."""

import torch

from agvm_mm.estimators.preconditioner import adam_direction, adam_second_moment


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
