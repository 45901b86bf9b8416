"""Mixed precision with states divided over the ranks, against DDP."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from engines import ENGINES, needs_fsdp
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from ranks import run_on_ranks
from toy import OPTIMIZERS, ToyDetector

from agvm_mm.estimators import ESTIMATORS, build_estimator
from agvm_mm.method.modulator import MeasurementSchedule
from gpu_check.engines import optimizer_for, whole, wrap
from gpu_check.parity import in_buckets, shard

UPDATES, OVERFLOW = 6, 3
SCALE = 2.0**10


def train(engine, estimator, optimizer):
    """Train in bfloat16; return the parameters, and Phi and loss scale over time."""
    model = ToyDetector().float()
    trained = wrap(engine, model, in_buckets, ['backbone.0', 'neck'])
    settings = dict(
        type='AGVMAmpOptimWrapper',
        optimizer=optimizer_for(engine, OPTIMIZERS[optimizer]),
        loss_scale=dict(init_scale=SCALE),
        dtype='bfloat16',
    )

    def scaler(**kwargs):
        return torch.amp.GradScaler('cpu', **kwargs)

    with (
        mock.patch.object(amp_optimizer_wrapper, 'is_cuda_available', lambda: True),
        mock.patch.object(amp_optimizer_wrapper, 'GradScaler', scaler),
    ):
        wrapper = build_optim_wrapper(model, settings)
    agvm = wrapper.make_agvm(model)
    built = build_estimator(
        estimator, agvm.preconditioner, agvm.parameters, trained, accumulation=1
    )
    agvm.attach(built, MeasurementSchedule(interval=1))
    history = []
    for update in range(UPDATES):
        inputs, targets = shard(update, dist.get_rank(), 0, 1, 2)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss = trained(inputs.float(), targets.float())['loss'].float()
        # Only one rank overflows.
        if update == OVERFLOW and dist.get_rank() == 1:
            loss = loss * 1e38
        wrapper.update_params(loss)
        history.append((agvm.variances, wrapper.loss_scaler.get_scale()))
    parameters = torch.cat([whole(p).flatten() for p in model.parameters()])
    return parameters, history, agvm.num_skipped_measurements


def train_engines():
    return {
        (engine, estimator, optimizer): train(engine, estimator, optimizer)
        for engine in ENGINES
        for estimator in ESTIMATORS
        for optimizer in OPTIMIZERS
    }


@needs_fsdp
def test_bfloat16_equals_ddp():
    first, second = run_on_ranks(train_engines, 2)
    for (engine, *case), (parameters, history, skipped) in first.items():
        assert skipped == 1
        assert history[OVERFLOW - 1][1] == SCALE and history[OVERFLOW][1] == SCALE / 2
        other, other_history, _ = second[(engine, *case)]
        assert torch.equal(other, parameters) and other_history == history
        expected, expected_history, _ = first[('ddp', *case)]
        torch.testing.assert_close(parameters, expected, rtol=0, atol=2e-6)
        for (phi, scale), (same_phi, same_scale) in zip(
            history, expected_history, strict=True
        ):
            assert phi == pytest.approx(same_phi, rel=0, abs=1e-5)
            assert scale == same_scale
    start = torch.cat([p.flatten() for p in ToyDetector().float().parameters()])
    assert (parameters - start).abs().max() > 1e-3
