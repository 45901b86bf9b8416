"""Several ranks under DistributedDataParallel, on gloo."""

import re
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel
from ranks import run_on_ranks
from torch.nn.parallel import DistributedDataParallel
from toy import OPTIMIZERS, ToyDetector, make_wrapper

from agvm_mm.estimators import build_estimator
from agvm_mm.method.modulator import MeasurementSchedule
from gpu_check import golden
from gpu_check.parity import (
    in_buckets,
    shard,
    train_cases,
    train_rank,
    train_reference,
)

ESTIMATORS = ('halves', 'replicas')


def test_golden_case():
    for results in run_on_ranks(golden.measure_golden, 4):
        for estimator, (variances, multipliers) in results.items():
            expected = golden.VARIANCES[estimator]
            assert variances == pytest.approx(expected, abs=1e-9)
            head = golden.MULTIPLIER[estimator]
            assert multipliers['head'] == pytest.approx(head, abs=1e-7)


@pytest.mark.parametrize('ranks', [2, 3, 4])
def test_matches_independent_reference(ranks):
    results = run_on_ranks(train_cases, ranks)
    for case in results[0]:
        parameters, history = results[0][case]
        for other_parameters, other_history in (r[case] for r in results[1:]):
            assert history == other_history, case
            for name, value in parameters.items():
                np.testing.assert_array_equal(value, other_parameters[name])
        optimizer, estimator, accumulation = case
        expected, expected_history = train_reference(
            optimizer, estimator, ranks, accumulation
        )
        for (mu, phi, noise), (expected_mu, expected_phi, expected_noise) in zip(
            history, expected_history, strict=True
        ):
            assert noise.keys() == expected_noise.keys()
            for name, expected_one in expected_noise.items():
                assert noise[name] == pytest.approx(expected_one, rel=1e-9), case
            assert phi == pytest.approx(expected_phi, abs=1e-10), case
            assert mu == pytest.approx(expected_mu, abs=1e-10), case
        for name, value in parameters.items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-10)
        assert len(set(history[-1][0].values())) == 4, 'multipliers did not move'


def ddp_variants_rank():
    """Train with every DDP setting, and with unused parameters."""
    return [
        train_rank('SGD', estimator, **kwargs)
        for estimator in ESTIMATORS
        for kwargs in (
            dict(),
            dict(gradient_as_bucket_view=True),
            dict(find_unused_parameters=True),
            dict(find_unused_parameters=True, use_mask_head=False),
            dict(
                find_unused_parameters=True,
                use_mask_head=False,
                gradient_as_bucket_view=True,
            ),
            dict(static_graph=True),
            dict(bucket_cap_mb=25),
        )
    ]


def test_ddp_settings_agree():
    results, _ = run_on_ranks(ddp_variants_rank, 2)
    for start in (0, 7):
        plain, view, find, unused, unused_view, static, one_bucket = results[
            start : start + 7
        ]
        # To the last bit: measurements do not depend on the buckets.
        assert plain[1] == view[1] == find[1] == static[1] == one_bucket[1]
        assert unused[1] == unused_view[1]
        mu, phi, _ = unused[1][-1]
        assert mu['mask_head'] == 1 and 'mask_head' not in phi
        assert mu['neck'] != 1


class CountedCollectives:
    """Records the number of elements of each all-reduce; fails on other collectives."""

    def __init__(self):
        self.sizes = []

    def __enter__(self):
        all_reduce = dist.all_reduce

        def counted(tensor, *args, **kwargs):
            self.sizes.append(tensor.numel())
            return all_reduce(tensor, *args, **kwargs)

        self.patches = [
            mock.patch.object(dist, 'all_reduce', counted),
            *(
                mock.patch.object(dist, name, side_effect=AssertionError(name))
                for name in ('all_gather', 'broadcast', 'reduce', 'barrier')
            ),
        ]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


def collectives_rank():
    """Return the sizes of all collectives of six updates, two of them measured."""
    result = {}
    for estimator in ESTIMATORS:
        model = ToyDetector()
        ddp = in_buckets(model)
        wrapper = make_wrapper(
            model,
            estimator=estimator,
            attach_to=ddp,
            schedule=dict(interval=2, begin=2),
        )
        result[estimator] = []
        for update in range(6):
            with CountedCollectives() as counted:
                images = shard(update, dist.get_rank(), 0, 1, 2)
                with wrapper.optim_context(ddp):
                    loss = ddp(*images)['loss']
                wrapper.update_params(loss)
            result[estimator].append(counted.sizes)
    return result, sum(p.numel() for p in model.parameters())


def test_number_and_size_of_collectives():
    (result, numel), _ = run_on_ranks(collectives_rank, 2)
    tensors = len(list(ToyDetector().parameters()))
    # DDP changes its buckets after the first update; updates 2 and 4 are measured.
    plain = result['halves'][1]
    assert sum(plain) == numel and len(plain) > 1
    for update, halves, replicas in zip(range(6), *result.values(), strict=True):
        if update == 0:
            continue
        if update in (2, 4):
            assert sorted(halves) == sorted([*plain, *plain, 3 * tensors])
            assert sorted(replicas) == sorted([*plain, 2 * tensors])
        else:
            assert halves == plain and replicas == plain


def unmeasured_rank():
    """Train with plain DDP and with AGVM that never measures."""
    results = []
    for estimator in (None, *ESTIMATORS):
        model = ToyDetector()
        ddp = in_buckets(model)
        if estimator is None:
            wrapper = torch.optim.SGD(
                model.parameters(),
                **{k: v for k, v in OPTIMIZERS['SGD'].items() if k != 'type'},
            )
        else:
            wrapper = make_wrapper(
                model,
                estimator=estimator,
                attach_to=ddp,
                schedule=dict(interval=1, begin=1000),
            )
        for update in range(10):
            if estimator is None:
                wrapper.zero_grad()
            context = nullcontext() if estimator is None else wrapper.optim_context(ddp)
            with context:
                loss = ddp(*shard(update, dist.get_rank(), 0, 1, 2))['loss']
            if estimator is None:
                loss.backward()
                wrapper.step()
            else:
                wrapper.update_params(loss)
        results.append({k: p.detach().numpy() for k, p in model.named_parameters()})
    return results


def test_unmeasured_updates_equal_plain_ddp_bit_for_bit():
    (plain, *with_agvm), _ = run_on_ranks(unmeasured_rank, 2)
    for parameters in with_agvm:
        for name, value in plain.items():
            np.testing.assert_array_equal(parameters[name], value)


def compression_rank():
    """Measure with a compressed mean gradient; register a second hook."""
    variances = {}
    for estimator in ESTIMATORS:
        for comm_hook in (None, 'fp16_compress_hook', 'bf16_compress_hook'):
            # gloo does in recent releases of torch.
            if comm_hook == 'bf16_compress_hook' and not reduces(torch.bfloat16):
                continue
            model = ToyDetector()
            ddp = DistributedDataParallel(model)
            wrapper = make_wrapper(model, 'SGD')
            agvm = wrapper.agvm
            built = build_estimator(
                estimator,
                agvm.preconditioner,
                agvm.parameters,
                ddp,
                accumulation=1,
                comm_hook=comm_hook,
            )
            wrapper.agvm.attach(built, MeasurementSchedule(interval=1))
            wrapper.update_params(ddp(*shard(0, dist.get_rank(), 0, 1, 2))['loss'])
            variances[estimator, comm_hook] = wrapper.agvm.variances
    errors = []
    with pytest.raises(ValueError) as caught:
        build_estimator(
            'halves', agvm.preconditioner, agvm.parameters, ddp, accumulation=1
        )
    errors.append(str(caught.value))
    refuse = RuntimeError('Invalid scalar type')
    with (
        mock.patch.object(dist, 'all_reduce', side_effect=refuse),
        pytest.raises(ValueError) as caught,
    ):
        build_estimator(
            'halves',
            agvm.preconditioner,
            agvm.parameters,
            DistributedDataParallel(model),
            accumulation=1,
            comm_hook='bf16_compress_hook',
        )
    errors.append(str(caught.value))
    return variances, errors


def reduces(dtype):
    """Return whether the backend adds numbers of this type."""
    try:
        dist.all_reduce(torch.zeros(1, dtype=dtype))
    except RuntimeError:
        return False
    return True


def test_compressed_mean_and_second_hook():
    (variances, (error, cannot_add)), other = run_on_ranks(compression_rank, 2)
    assert variances == other[0]
    for (estimator, comm_hook), phi in variances.items():
        exact = variances[estimator, None]
        tolerance = {None: 0, 'fp16_compress_hook': 2e-3, 'bf16_compress_hook': 2e-2}
        assert phi == pytest.approx(exact, abs=tolerance[comm_hook])
        assert comm_hook is None or phi != exact
    assert 'communication hook already' in error
    assert re.search(
        "comm_hook='bf16_compress_hook': the backend gloo .* does not reduce "
        r'torch.bfloat16 \(Invalid scalar type\); try fp16_compress_hook',
        cannot_add,
    )


class HeadOfOneRank(BaseModel):
    """Network in float32 whose head has a gradient on rank 0 only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = torch.nn.Linear(6, 8)
        self.head = torch.nn.Linear(8, 50)

    def forward(self, inputs, data_samples=None, mode='loss'):
        features = self.backbone(inputs)
        own = float(dist.get_rank() == 0)
        loss = features.square().mean() + own * (self.head(features) - 1).square().sum()
        return dict(loss=loss)


def head_of_one_rank(optimizer):
    network = HeadOfOneRank()
    model = DistributedDataParallel(network)
    wrapper = make_wrapper(network, optimizer, estimator='halves', attach_to=model)
    generator = torch.Generator().manual_seed(dist.get_rank())
    loss = model(torch.randn(4, 6, generator=generator))['loss']
    wrapper.update_params(loss)
    return wrapper.agvm.variances['head']


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_half_without_gradient_is_zero_to_the_last_bit(optimizer):
    """Adam's first update rescales any rounding error to the size of a gradient."""
    # 1/3 is not a number of the computer.
    assert run_on_ranks(head_of_one_rank, 3, optimizer) == [1, 1, 1]


class ConvolutionsInFloat64(BaseModel):
    """Network of two convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = torch.nn.Conv2d(3, 6, 3)
        self.head = torch.nn.Conv2d(6, 4, 3)
        self.double()

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=(self.head(self.backbone(inputs)) - 1).square().mean())


def variances_in_memory_format(memory_format):
    found = []
    for estimator in ESTIMATORS:
        network = ConvolutionsInFloat64().to(memory_format=memory_format)
        model = DistributedDataParallel(network)
        wrapper = make_wrapper(network, 'AdamW', estimator=estimator, attach_to=model)
        generator = torch.Generator().manual_seed(dist.get_rank())
        for _ in range(3):
            images = torch.randn(2, 3, 6, 6, generator=generator).double()
            wrapper.update_params(model(images)['loss'])
            found.append(wrapper.agvm.variances)
    return found


def test_adam_rescales_gradients_in_channels_last():
    """Each element by its own v, in whatever order a bucket has them."""
    expected, found = (
        run_on_ranks(variances_in_memory_format, 2, memory_format)[0]
        for memory_format in (torch.contiguous_format, torch.channels_last)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
