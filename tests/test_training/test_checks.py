"""Runs that are refused before training."""

import pytest
import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper, OptimWrapperDict
from ranks import run_on_ranks
from torch.nn.parallel import DistributedDataParallel
from toy import ToyDetector, make_wrapper

from agvm_mm.estimators import check_accumulation, check_model
from agvm_mm.training.variance_sync import check_optim_wrapper


def test_optim_wrapper_dict_is_refused():
    wrapper = OptimWrapper(torch.optim.SGD(ToyDetector().parameters(), lr=0.1))
    with pytest.raises(TypeError, match='OptimWrapperDict'):
        check_optim_wrapper(OptimWrapperDict(generator=wrapper))
    check_optim_wrapper(make_wrapper(ToyDetector()))


def wrapped_models_rank():
    """Return the messages for models in wrappers that AGVM does not support."""
    from mmengine.model import MMSeparateDistributedDataParallel
    from torch.distributed import fsdp as sharding
    from torch.distributed.fsdp import FullyShardedDataParallel

    def message(model, accumulation=1, check=check_model):
        try:
            check(model, accumulation)
        except (TypeError, ValueError) as error:
            return f'{type(error).__name__}: {error}'

    fsdp = FullyShardedDataParallel(ToyDetector(), device_id=torch.device('cpu'))
    inside = torch.nn.Sequential(
        FullyShardedDataParallel(ToyDetector(), device_id=torch.device('cpu'))
    )
    sharded = ToyDetector()
    if hasattr(sharding, 'fully_shard'):
        mesh = dist.device_mesh.init_device_mesh('cpu', (dist.get_world_size(),))
        sharding.fully_shard(sharded, mesh=mesh)
    else:  # Before torch 2.6 there is only the older version.
        sharded = inside
    parts = ToyDetector()
    parts.roi_head = torch.nn.Linear(2, 2)
    separate = MMSeparateDistributedDataParallel(
        parts, broadcast_buffers=False, device_ids=None
    )
    with pytest.raises(AttributeError), separate.no_sync():
        pass
    return dict(
        fsdp=message(fsdp),
        fsdp_inside=message(inside),
        fully_shard=message(sharded),
        separate=message(separate),
        separate_once=message(separate, 1, check_accumulation),
        separate_accumulated=message(separate, 2, check_accumulation),
        data_parallel=message(torch.nn.DataParallel(ToyDetector())),
        static=message(DistributedDataParallel(ToyDetector(), static_graph=True)),
        static_accumulated=message(
            DistributedDataParallel(ToyDetector(), static_graph=True), 2
        ),
        ddp_accumulated=message(DistributedDataParallel(ToyDetector()), 2),
        not_wrapped=message(ToyDetector()),
    )


def test_unsupported_model_wrappers_are_refused():
    messages, _ = run_on_ranks(wrapped_models_rank, 2)
    for name in ('fsdp', 'fsdp_inside', 'fully_shard'):
        assert messages[name].startswith('TypeError: AGVM does not support FSDP')
    assert 'wrapped in MMSeparateDistributedDataParallel' in messages['separate']
    assert 'wrapped in DataParallel' in messages['data_parallel']
    assert 'static_graph=True with 2' in messages['static_accumulated']
    assert '2 ranks, but the model is not wrapped' in messages['not_wrapped']
    assert 'DataParallel with 2 accumulated' in messages['separate_accumulated']
    for name in ('static', 'ddp_accumulated', 'separate_once'):
        assert messages[name] is None
    check_model(ToyDetector(), 2)
