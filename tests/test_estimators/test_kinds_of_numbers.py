"""Parameters of other kinds: complex, sparse, new."""

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.utils import digit_version
from ranks import run_on_ranks
from torch import nn
from toy import OPTIMIZERS, ToyDetector, make_wrapper

from agvm_mm.estimators import check_model


class FourierModel(BaseModel):
    """Network with complex weights, or with pairs of reals in their place."""

    def __init__(self, pairs):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64)
        if not pairs:
            weights = torch.view_as_complex(weights)
        self.backbone = nn.ParameterDict(dict(weight=weights[0].clone()))
        self.head = nn.ParameterDict(dict(weight=weights[1].clone()))

    def forward(self, inputs, data_samples=None, mode='loss'):
        first, second = self.backbone['weight'], self.head['weight']
        if not first.is_complex():
            first, second = map(torch.view_as_complex, (first, second))
        outputs = (torch.fft.fft(inputs) @ first) * second.mean(0)
        return dict(loss=(outputs - 1).abs().square().mean())


def variances(estimator, optimizer, pairs, *, accumulation, rank=0, ddp=False):
    network = FourierModel(pairs)
    model = MMDistributedDataParallel(network) if ddp else network
    wrapper = make_wrapper(
        network,
        optimizer,
        estimator=estimator,
        attach_to=model,
        schedule=dict(interval=1, begin=0),
        accumulative_counts=accumulation,
    )
    generator = torch.Generator().manual_seed(rank)
    for _ in range(4 * accumulation):
        inputs = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        with wrapper.optim_context(model):
            loss = model(inputs)['loss']
        wrapper.update_params(loss)
    return wrapper.agvm.variances


@pytest.mark.parametrize('estimator', ['halves', 'replicas'])
@pytest.mark.parametrize(
    'optimizer', [*OPTIMIZERS, dict(type='Adam', lr=0.01, amsgrad=True)]
)
def test_complex_weights_are_pairs_of_reals(estimator, optimizer):
    found = variances(estimator, optimizer, pairs=False, accumulation=4)
    expected = variances(estimator, optimizer, pairs=True, accumulation=4)
    assert found == pytest.approx(expected, rel=1e-12)


def on_rank(pairs):
    rank = torch.distributed.get_rank()
    return [
        variances(name, optimizer, pairs, accumulation=1, rank=rank, ddp=True)
        for name in ('halves', 'replicas')
        for optimizer in OPTIMIZERS
    ]


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='DDP of torch 2.1 does not send complex weights with gloo',
)
def test_complex_weights_on_ranks():
    found, expected = (run_on_ranks(on_rank, 2, pairs)[0] for pairs in (False, True))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_sparse_gradients_are_refused():
    model = nn.ModuleDict(dict(backbone=nn.Embedding(3, 2, sparse=True)))
    with pytest.raises(TypeError, match='sparse gradients, and backbone has them'):
        check_model(model, 1)


def test_model_on_two_devices_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device='meta'))
    with pytest.raises(TypeError, match='this one lies on cpu, meta'):
        check_model(model, 1)


def test_parameters_that_a_hook_adds_are_refused():
    wrapper = make_wrapper(ToyDetector(), estimator='halves', accumulative_counts=2)
    wrapper.optimizer.add_param_group(dict(params=[nn.Parameter(torch.zeros(2))]))
    with pytest.raises(
        RuntimeError, match='1 parameters, .* or not in the optimizer when'
    ):
        wrapper.step()
