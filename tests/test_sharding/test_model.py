"""Models that are divided over the ranks."""

import pytest
import torch
import torch.distributed as dist
from engines import ENGINES, SETTINGS, build, needs_fsdp
from mmengine.model import BaseModel, BaseModule
from ranks import run_on_ranks
from torch import nn
from toy import ToyDetector, make_wrapper

from agvm_mm.estimators import check_model
from agvm_mm.sharding import model as sharding
from agvm_mm.sharding.model import FullyShardedModel, default_units, parameters_on_meta
from agvm_mm.training.update import reset_update
from gpu_check.engines import whole
from gpu_check.parity import shard

pytestmark = needs_fsdp


def update_after(interrupted, clear):
    """Return the parameters after an update that follows an interrupted one."""
    model, trained, wrapper = build('fsdp', SETTINGS['SGD'], 'halves')
    images = shard(0, dist.get_rank(), 0, 1, 2)
    if interrupted:
        with trained.no_sync():
            loss = trained(*images)['loss']
        loss.backward()
        clear(trained, wrapper)
    with wrapper.optim_context(trained):
        loss = trained(*images)['loss']
    wrapper.update_params(loss)
    assert wrapper.agvm.num_measurements == 1
    return torch.cat([whole(p).flatten() for p in model.parameters()])


def dropped():
    def only_zero_grad(trained, wrapper):
        wrapper.zero_grad()

    return (
        update_after(False, None),
        update_after(True, reset_update),
        update_after(True, only_zero_grad),
    )


def test_dropped_update_leaves_no_gradient():
    for clean, reset, leaked in run_on_ranks(dropped, 2):
        assert torch.equal(reset, clean)
        assert not torch.equal(leaked, clean)


def held():
    """Return the numbers that this rank holds after an update, by engine."""
    found = {}
    for engine in ENGINES:
        model, trained, wrapper = build(engine, SETTINGS['AdamW'], 'replicas')
        with wrapper.optim_context(trained):
            loss = trained(*shard(0, dist.get_rank(), 0, 1, 2))['loss']
        wrapper.backward(loss)
        gradients = [p.grad for p in model.parameters()]
        wrapper.step()
        optimizer = getattr(wrapper.optimizer, 'optim', wrapper.optimizer)
        moments = [
            each[name]
            for each in optimizer.state.values()
            for name in ('exp_avg', 'exp_avg_sq')
        ]
        parts = list(model.parameters()), gradients, moments
        found[engine] = [sum(map(elements, part)) for part in parts]
    return found


def elements(tensor):
    return getattr(tensor, 'to_local', lambda: tensor)().numel()


def test_what_ranks_divide():
    total = sum(p.numel() for p in ToyDetector().parameters())
    first, second = run_on_ranks(held, 2)
    sums = {e: [a + b for a, b in zip(first[e], second[e], strict=True)] for e in first}
    assert sums == dict(
        ddp=[2 * total, 2 * total, 4 * total],
        zero=[2 * total, 2 * total, 2 * total],
        fsdp=[total, total, 2 * total],
    )


class SharedHead(ToyDetector):
    """Network that runs a unit twice, which has weights that it uses only once."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).double()

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = self.head(self.head(self.neck(self.backbone(inputs))))
        return dict(loss=x.square().mean())


class Bypasses(ToyDetector):
    """Network that runs its neck without hooks."""

    def forward(self, inputs, data_samples=None, mode='loss'):
        return dict(loss=self.neck.forward(self.backbone(inputs)).square().mean())


class Initializes(ToyDetector):
    """Network that initializes its weights at each call."""

    def init_weights(self):
        nn.init.normal_(self.neck.weight)


def refusals():
    """Return the error for models that cannot be divided."""
    found = {}

    def attempt(name, make):
        try:
            make()
        except (RuntimeError, TypeError, ValueError) as error:
            found[name] = f'{type(error).__name__}: {error}'

    def wrap(network=None, units=None, **kwargs):
        return FullyShardedModel(network or ToyDetector(), units, **kwargs)

    scalar, shared = ToyDetector(), ToyDetector()
    scalar.scale = nn.Parameter(torch.ones(()))
    shared.backbone[2].weight = shared.neck.weight
    attempt('scalar', lambda: wrap(scalar))
    attempt('shared', lambda: wrap(shared))
    attempt('unit', lambda: wrap(units=['backbone.9']))
    attempt('list', lambda: wrap(units=['roi_head']))
    attempt('unused', lambda: wrap(find_unused_parameters=True))
    attempt('offload', lambda: wrap(offload_policy=True))
    attempt('init', lambda: wrap(Initializes()))
    needed, sharding.NEEDED = sharding.NEEDED, ('set_something',)
    attempt('torch', wrap)
    sharding.NEEDED = needed
    _, trained, wrapper = build(
        'fsdp', SETTINGS['SGD'], 'halves', SharedHead(), units=['head']
    )
    check_model(trained, 1)
    loss = trained(*shard(0, dist.get_rank(), 0, 1, 2))['loss']
    attempt('twice', lambda: wrapper.update_params(loss))
    attempt('state', trained.module.state_dict)
    images = shard(0, dist.get_rank(), 0, 1, 2)
    attempt('bypassed', lambda: wrap(Bypasses(), units=['neck'])(*images))
    return found


def test_refusals():
    for found in run_on_ranks(refusals, 2):
        assert 'cannot divide scale' in found['scalar']
        assert "units 'backbone.2' and 'neck'" in found['shared'] or (
            "units 'neck' and 'backbone.2'" in found['shared']
        )
        assert "'backbone.9', which is no submodule" in found['unit']
        assert 'backbone.0, backbone.2, neck' in found['unit']
        assert "'roi_head', which is no submodule with a" in found['list']
        assert 'All ranks have to run all units' in found['unused']
        assert 'Nothing is offloaded' in found['offload']
        assert found['init'].startswith('TypeError: Initializes.init_weights')
        assert 'needs set_something, which torch' in found['torch']
        assert "the unit 'head' of FullyShardedModel" in found['twice']
        assert "type='AtomicCheckpointHook'" in found['state']
        assert 'the units are neck; name others in model_wr' in found['bypassed']


def one_rank():
    with pytest.raises(ValueError, match='this run has one'):
        FullyShardedModel(ToyDetector())


def test_one_rank_is_refused():
    run_on_ranks(one_rank, 1)


class OnMeta(BaseModel):
    """Network with large and small layers, a buffer, and a value of its own."""

    def __init__(self, own_size=4):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(1024, 1024), nn.BatchNorm1d(1024))
        self.neck = nn.Linear(1024, 1025, bias=False)
        self.own = nn.Parameter(torch.full((own_size,), 7.0))
        self.register_buffer('known', torch.arange(3.0))
        self.init_cfg = dict(
            type='Constant', val=2.0, override=dict(name='neck', type='Constant', val=3)
        )

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = self.neck(self.backbone(inputs)) * self.own.mean()
        return dict(loss=x.square().mean())


def from_meta():
    """Train a network that no rank has held whole, and return what it was."""
    handle = parameters_on_meta()
    model, uninitialized = OnMeta(), OnMeta(2**20)
    with torch.device('meta'):
        lost = OnMeta()
    handle.remove()
    on_meta = [name for name, p in model.named_parameters() if p.is_meta]
    trained = FullyShardedModel(model, units=['backbone', 'neck'])
    found = {name: whole(p).clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    wrapper = make_wrapper(model, 'SGD', estimator='halves', attach_to=trained)
    torch.manual_seed(dist.get_rank())
    with wrapper.optim_context(trained):
        loss = trained(torch.randn(4, 1024))['loss']
    wrapper.update_params(loss)
    messages = []
    for network in (uninitialized, lost):
        with pytest.raises(RuntimeError) as caught:
            FullyShardedModel(network, units=[])
        messages.append(str(caught.value))
    stepped = whole(model.neck.weight)
    return on_meta, found, buffers, stepped, wrapper.agvm.variances, messages


def test_network_on_meta_is_initialized_in_slices():
    first, second = run_on_ranks(from_meta, 2)
    on_meta, found, buffers, stepped, variances, messages = first
    assert on_meta == ['backbone.0.weight', 'neck.weight']
    assert (found['neck.weight'] == 3).all()
    assert (found['own'] == 7).all()
    assert (found['backbone.1.weight'] == 1).all()
    weight = found['backbone.0.weight']  # As nn.Linear draws it.
    assert weight.abs().max() <= 1 / 32
    assert weight.std().item() == pytest.approx(1 / 32 / 3**0.5, rel=0.01)
    assert not torch.equal(weight[:512], weight[512:])
    assert torch.equal(buffers['known'], torch.arange(3.0))
    assert torch.equal(buffers['backbone.1.running_var'], torch.ones(1024))
    assert not torch.equal(stepped, found['neck.weight'])
    assert torch.equal(stepped, second[3]) and variances == second[4]
    assert 'nothing initializes own' in messages[0]
    assert 'the buffer' in messages[1] and 'on the meta device' in messages[1]


class Stages(BaseModule):
    """Backbone with a list of stages and a small stem."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(1, 1)
        self.stages = nn.ModuleList([nn.Linear(9, 9), nn.Linear(9, 9)])


def test_default_units():
    network = nn.Module()
    network.backbone, network.head = Stages(), nn.Linear(9, 99)
    assert default_units(network) == ['backbone.stages.0', 'backbone.stages.1']
    network.neck = nn.Linear(2, 2)
    assert default_units(network)[2:] == ['neck']
    assert default_units(nn.Linear(2, 2)) == []
