"""Kernels that a measurement launches on a GPU, counted without one.

Tensors on the meta device take the branch of GPUs and compute nothing. The number of
launches of a multi-tensor operator follows torch's rule (ForeachUtils,
MultiTensorApply.cuh): chunks of 65,536 elements, and 320 chunks or a number of tensors
that depends on the lists for each launch.
"""

from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.hub import get_config
from mmengine.utils import digit_version
from torch.futures import Future
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from agvm_mm.estimators import ddp, ranks
from agvm_mm.estimators.micro_batches import MicroBatchHalves, MicroBatchReplicas
from agvm_mm.estimators.preconditioner import build_preconditioner
from agvm_mm.method.modules import assign_modules
from agvm_mm.optim.agvm import parameters_by_module

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='torch 2.1 has no multi-tensor operators for the meta device',
)
TENSORS_OF_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
VIEWS = {'as_strided', 'view', 'split', 'expand', 'unbind', 'select', 'slice', 'detach'}
VIEWS |= {'_unsafe_view', 'alias', 't', 'permute', 'view_as_real', 'unsqueeze'}


def launches(lists, sizes):
    """Return the launches of one multi-tensor operator."""
    count = tensors = blocks = 0
    for position, size in enumerate(sizes):
        tensors += 1
        chunks = max(1, -(-size // 65536))
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            full = tensors == TENSORS_OF_A_LAUNCH[lists] and last
            if full or blocks == 320 or (position == len(sizes) - 1 and last):
                count, blocks = count + 1, 0
                tensors = 0 if last else 1
    return count


class Kernels(TorchDispatchMode):
    """Counts the kernels of what runs inside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        if name == '_to_copy' and args[0].is_meta:
            self.count += 1
            return torch.ones(args[0].shape)
        if name.startswith('_foreach'):
            of_lists = [arg for arg in args if isinstance(arg, list)]
            sizes = [tensor.numel() for tensor in of_lists[0]]
            tensors = [each for each in of_lists if torch.is_tensor(each[0])]
            lists = len(tensors)
            if name != '_foreach_norm' and not name.endswith('_'):
                lists += 1
            # The norms of the chunks of each tensor are added by one more.
            self.count += launches(lists, sizes) + (name == '_foreach_norm')
        elif name in ('cat', 'stack'):
            self.count += -(-len(args[0]) // 128)
        elif name not in VIEWS and not name.startswith(('empty', 'new_empty')):
            self.count += any(
                leaf.is_meta for leaf in tree_flatten(args)[0] if torch.is_tensor(leaf)
            )
        return func(*args, **kwargs)


@pytest.fixture(scope='module')
def model():
    register_all_modules()
    settings = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    settings.backbone.init_cfg = None
    with torch.device('meta'):
        return MODELS.build(settings)


def setup(model, kind):
    """Return preconditioner and parameters of an optimizer that has stepped."""
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 156 and sum(p.numel() for p in trained) > 41_000_000
    optimizer = getattr(torch.optim, kind)(trained, lr=0.1)
    if kind == 'AdamW':
        for parameter in trained:
            optimizer.state[parameter]['exp_avg_sq'] = torch.empty_like(parameter)
    parameters = dict(model.named_parameters())
    modules = {id(parameters[name]): m for name, m in assign_modules(model).items()}
    return build_preconditioner(optimizer), parameters_by_module(optimizer, modules)


@pytest.mark.parametrize(('optimizer', 'most'), [('SGD', 60), ('AdamW', 350)])
@pytest.mark.parametrize('kind', [MicroBatchHalves, MicroBatchReplicas])
def test_kernels_of_two_micro_batches(model, kind, optimizer, most):
    estimator = kind(*setup(model, optimizer))
    with Kernels() as kernels:
        estimator.start(2)
        for _ in range(2):
            for parameter in estimator.parameters:
                parameter.grad = torch.empty_like(parameter)
            estimator.record(0.5)
        estimator.finish()
    assert 10 < kernels.count <= most


def done(value):
    future = Future()
    future.set_result(value)
    return future


def buckets_of(parameters):
    """Yield the buckets of DDP: one of 1 MB, then of 25 MB, from the last parameter."""
    rest = list(reversed(parameters))
    limit = 2**18
    while rest:
        own = [rest.pop(0)]
        while rest and sum(p.numel() for p in own) < limit:
            own.append(rest.pop(0))
        limit = 25 * 2**18
        flat = torch.empty(sum(p.numel() for p in own), device='meta')
        yield SimpleNamespace(
            buffer=lambda flat=flat: flat,
            parameters=lambda own=own: own,
            gradients=lambda own=own: own,
        )


@pytest.mark.parametrize(
    ('kind', 'optimizer', 'most'),
    [
        (ranks.RankReplicas, 'SGD', 100),
        (ranks.RankHalves, 'SGD', 170),
        (ranks.RankReplicas, 'AdamW', 420),
        (ranks.RankHalves, 'AdamW', 420),
    ],
)
def test_kernels_under_ddp(model, monkeypatch, kind, optimizer, most):
    reduced = SimpleNamespace(get_future=lambda: done(None))
    monkeypatch.setattr(ddp.dist, 'get_rank', lambda group: 0)
    monkeypatch.setattr(ddp.dist, 'get_backend', lambda group: 'nccl')
    monkeypatch.setattr(ddp.dist, 'all_reduce', lambda *_, **__: reduced)
    group = SimpleNamespace(size=lambda: 4)
    wrapped = SimpleNamespace(process_group=group, register_comm_hook=lambda *_: None)
    source = ddp.DDPGradients(wrapped)
    estimator = kind(*setup(model, optimizer), source)
    # DDP's own reduction is not part of the measurement.
    source._reduce_mean = lambda group, bucket: done(bucket.buffer())
    parameters = [p for p in model.parameters() if p.requires_grad]
    buckets = list(buckets_of(parameters))
    assert len(buckets) > 4
    with Kernels() as kernels:
        estimator.start(1)
        for bucket in buckets:
            source._hook(None, bucket)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        estimator.record(1)
        estimator.finish()
    assert 10 < kernels.count <= most
