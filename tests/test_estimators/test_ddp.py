"""Several ranks under DistributedDataParallel, on gloo."""

import re
from contextlib import nullcontext
from unittest import mock

import golden
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from reference import ReferenceAGVM
from torch.nn.parallel import DistributedDataParallel
from toy import OPTIMIZERS, ToyDetector, make_images, make_wrapper

from agvm_mm.estimators import build_estimator
from agvm_mm.modulator import MeasurementSchedule
from agvm_mm.modules import assign_modules

ESTIMATORS = ('halves', 'replicas')
COMBINATIONS = [(o, e) for o in ('SGD', 'AdamW') for e in ESTIMATORS]
SCHEDULE = dict(interval=2, begin=1)
UPDATES = 20


def golden_rank():
    """Measure the golden case on this rank."""
    results = {}
    for estimator in ESTIMATORS:
        model = golden.GoldenModel()
        ddp = DistributedDataParallel(model)
        wrapper = make_wrapper(model, estimator=estimator, attach_to=ddp)
        with wrapper.optim_context(ddp):
            loss = ddp(dist.get_rank())
        wrapper.update_params(loss)
        results[estimator] = (wrapper.variances, wrapper.multipliers)
    return results


def test_golden_case():
    for results in run_on_ranks(golden_rank, 4):
        for estimator, (variances, multipliers) in results.items():
            expected = golden.VARIANCES[estimator]
            assert variances == pytest.approx(expected, abs=1e-9)
            head = golden.MULTIPLIER[estimator]
            assert multipliers['head'] == pytest.approx(head, abs=1e-7)


def shard(update, rank, micro_batch, accumulation, ranks):
    """Return 4 images of one micro-batch of one rank."""
    inputs, targets = make_images(4 * ranks * accumulation, seed=update)
    start = 4 * (rank * accumulation + micro_batch)
    return inputs[start : start + 4], targets[start : start + 4]


def in_buckets(model, **ddp_kwargs):
    """Wrap a model in DDP with buckets of 100 bytes, so that there are several."""
    # Older releases of torch ignore the setting for the first one.
    with mock.patch.object(dist, '_DEFAULT_FIRST_BUCKET_BYTES', 100):
        return DistributedDataParallel(model, **dict(bucket_cap_mb=1e-4) | ddp_kwargs)


def train_rank(optimizer, estimator, accumulation=1, use_mask_head=True, **ddp_kwargs):
    """Train on this rank; return parameters, and mu and Phi of each update."""
    model = ToyDetector(use_mask_head=use_mask_head)
    ddp = in_buckets(model, **ddp_kwargs)
    wrapper = make_wrapper(
        model,
        optimizer,
        estimator=estimator,
        attach_to=ddp,
        schedule=SCHEDULE,
        accumulative_counts=accumulation,
    )
    # The images of a rank's update count as one.
    wrapper.attach(
        wrapper._estimator,
        wrapper._schedule,
        images_per_pass=dist.get_world_size() / accumulation,
    )
    history = []
    for update in range(UPDATES):
        for micro_batch in range(accumulation):
            images = shard(
                update,
                dist.get_rank(),
                micro_batch,
                accumulation,
                dist.get_world_size(),
            )
            with wrapper.optim_context(ddp):
                loss = ddp(*images)['loss']
            wrapper.update_params(loss)
        noise = wrapper.noise.averages()
        history.append((wrapper.multipliers, wrapper.variances, noise))
    parameters = {k: p.detach().numpy() for k, p in model.named_parameters()}
    return parameters, history


def train_reference(optimizer, estimator, ranks, accumulation, use_mask_head=True):
    """Run the same training on full gradients, without torch.distributed."""
    model = ToyDetector(use_mask_head=use_mask_head)
    reference = ReferenceAGVM(
        {k: p.detach().numpy() for k, p in model.named_parameters()},
        assign_modules(model),
        optimizer=optimizer,
        lr=OPTIMIZERS[optimizer]['lr'],
        weight_decay=OPTIMIZERS[optimizer]['weight_decay'],
        estimator=estimator,
        interval=SCHEDULE['interval'],
        begin=SCHEDULE['begin'],
    )
    history = []
    for update in range(UPDATES):
        model.load_state_dict(
            {k: torch.from_numpy(v) for k, v in reference.parameters.items()}
        )
        replicas = []
        for rank in range(ranks):
            model.zero_grad()
            for micro_batch in range(accumulation):
                images = shard(update, rank, micro_batch, accumulation, ranks)
                (model(*images)['loss'] / accumulation).backward()
            replicas.append(
                {k: p.grad.numpy().copy() for k, p in model.named_parameters()}
            )
        reference.step(replicas)
        noise = {
            name: (signal, ranks * noise)
            for name, (signal, noise) in reference.noise_averages().items()
        }
        history.append((dict(reference.multipliers), dict(reference.variances), noise))
    return reference.parameters, history


def train_all_rank():
    """Train with every optimizer and estimator, plain and accumulated."""
    return {
        (optimizer, estimator, accumulation): train_rank(
            optimizer,
            estimator,
            accumulation,
            gradient_as_bucket_view=accumulation == 1,
        )
        for optimizer, estimator in COMBINATIONS
        for accumulation in (1, 2)
    }


@pytest.mark.parametrize('ranks', [2, 3, 4])
def test_matches_independent_reference(ranks):
    results = run_on_ranks(train_all_rank, ranks)
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
    # DDP changes its buckets after the first update; updates 2 and 4 are measured.
    plain = result['halves'][1]
    assert sum(plain) == numel and len(plain) > 1
    for update, halves, replicas in zip(range(6), *result.values(), strict=True):
        if update == 0:
            continue
        if update in (2, 4):
            assert sorted(halves) == sorted([*plain, *plain, 4 * 3])
            assert sorted(replicas) == sorted([*plain, 4 * 2])
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
            built = build_estimator(
                estimator, wrapper.optimizer, ddp, accumulation=1, comm_hook=comm_hook
            )
            wrapper.attach(built, MeasurementSchedule(interval=1))
            wrapper.update_params(ddp(*shard(0, dist.get_rank(), 0, 1, 2))['loss'])
            variances[estimator, comm_hook] = wrapper.variances
    errors = []
    with pytest.raises(ValueError) as caught:
        build_estimator('halves', wrapper.optimizer, ddp, accumulation=1)
    errors.append(str(caught.value))
    refuse = RuntimeError('Invalid scalar type')
    with (
        mock.patch.object(dist, 'all_reduce', side_effect=refuse),
        pytest.raises(ValueError) as caught,
    ):
        build_estimator(
            'halves',
            wrapper.optimizer,
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
