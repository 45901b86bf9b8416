"""Adam's rescaling against torch."""

import pytest
import torch
from toy import ToyDetector, make_images, make_wrapper

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
    shared = optimizer.state[p][name].clone() if steps else torch.ones(6)
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


def test_element_that_had_no_gradient_does_not_outweigh_the_others():
    """The output of a class that no image had so far, for example."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.tensor([1.0, -2.0, 0.0])
    optimizer.step()
    v = optimizer.state[weight]['exp_avg_sq']
    gradient = torch.tensor([3.0, 4.0, 1e-3])
    (direction,) = AdamPreconditioner(optimizer).directions([weight], [gradient])
    expected = [3 / v[0].item() ** 0.5, 4 / v[1].item() ** 0.5, 0]
    assert direction.tolist() == pytest.approx(expected, rel=1e-5)
    (bad,) = AdamPreconditioner(optimizer).directions([weight], [gradient / 0])
    assert not bad.isfinite().any()


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
def test_first_update_does_not_outweigh_later_ones(estimator):
    found = []
    for begin in (0, 1):
        model = ToyDetector()
        wrapper = make_wrapper(
            model,
            dict(type='AdamW', lr=1e-3),
            estimator=estimator,
            schedule=dict(interval=1, begin=begin),
            accumulative_counts=4,
        )
        wrapper.agvm.modulator = None
        for seed in range(120):
            wrapper.update_params(model(*make_images(16, seed))['loss'])
        found.append(wrapper.agvm.noise.averages())
    for name, expected in found[1].items():
        assert found[0][name] == pytest.approx(expected, rel=0.25), name
