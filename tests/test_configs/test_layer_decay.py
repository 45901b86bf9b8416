"""Stock configs with layer-wise decay: every parameter keeps its rate and decay."""

import copy
import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import for_each
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from agvm_mm.report import plan

pytestmark = pytest.mark.evidence

DECAYS = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')


ARCHS = dict(
    tiny=((3, 3, 9, 3), (96, 192, 384, 768)),
    small=((3, 3, 27, 3), (96, 192, 384, 768)),
    base=((3, 3, 27, 3), (128, 256, 512, 1024)),
    large=((3, 3, 27, 3), (192, 384, 768, 1536)),
    xlarge=((3, 3, 27, 3), (256, 512, 1024, 2048)),
)


class ConvNeXtBlock(nn.Module):
    """Parameters of a block, by their names in MMPretrain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(width, width, 7, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise_conv1 = nn.Linear(width, 4 * width)
        self.pointwise_conv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))


class ConvNeXt(nn.Module):
    """Parameters of MMPretrain's ConvNeXt: the package is not installed."""

    def __init__(self, arch: str, **kwargs: Any) -> None:
        super().__init__()
        depths, widths = ARCHS[arch]
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            before, size = (3, 4) if stage == 0 else (widths[stage - 1], 2)
            convolution = nn.Conv2d(before, width, size, stride=size)
            self.downsample_layers.append(
                nn.Sequential(convolution, nn.LayerNorm(width))
            )
            blocks = [ConvNeXtBlock(width) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            self.add_module(f'norm{stage}', nn.LayerNorm(width))


@cache
def layer_decay_configs() -> dict[str, Config]:
    """Return the stock configs with layer-wise decay by their name."""
    families = ('convnext', 'rtmdet', 'beit', 'mae')
    toolboxes = map(importlib.import_module, ('mmdet', 'mmseg'))
    folders = [Path(toolbox.__file__).parent / '.mim/configs' for toolbox in toolboxes]
    paths = [
        path
        for folder in folders
        for family in families
        for path in sorted(folder.glob(f'{family}/*.py'))
    ]
    configs = {
        path.stem: Config.fromfile(path, import_custom_modules=False) for path in paths
    }
    for config in configs.values():
        if (
            config.get('model', {})
            .get('backbone', {})
            .get('type', '')
            .endswith('mmpretrain.ConvNeXt')
        ):
            config.model.backbone.type = ConvNeXt
    return {
        name: config
        for name, config in configs.items()
        if config.get('optim_wrapper', {}).get('constructor') in DECAYS
    }


def by_parameter(model: nn.Module, wrapper: OptimWrapper) -> dict[str, dict]:
    """Return the settings of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {
            key: value
            for key, value in group.items()
            if key not in ('params', 'param_names')
        }
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }


def test_all_configs_with_layer_wise_decay_are_found():
    assert len(layer_decay_configs()) == 16


@for_each(layer_decay_configs)
def test_rates_and_decays_are_those_of_the_stock_optimizer(
    name: str, capsys: pytest.CaptureFixture
):
    config = layer_decay_configs()[name]
    model = plan.build_model(config)
    settings = copy.deepcopy(config.optim_wrapper)
    # Mixed precision needs a GPU.
    settings.type = 'OptimWrapper'
    settings.pop('loss_scale', None)
    with plan.quiet():
        expected = by_parameter(model, build_optim_wrapper(model, settings))
        wrapper = build_optim_wrapper(model, dict(settings, type='AGVMOptimWrapper'))
        assert by_parameter(model, wrapper) == expected
        rates = {one['lr'] for one in expected.values()}
        assert max(rates) > 1.4 * min(rates)
        assert len(wrapper.make_agvm(model).parameters) > 1
    assert not capsys.readouterr().out
