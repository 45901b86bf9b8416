"""The configs of the README and the method card work as they are."""

import math
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner
from scripts import run_script
from synthetic import scope_ready, shrink

README = Path(__file__).parent.parent / 'README.md'
CARD = README.parent / 'docs/method_card.md'


def python_blocks():
    return re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


def test_lines_for_a_config_work_on_a_stock_config(tmp_path):
    lines, loop = python_blocks()
    path = tmp_path / 'config.py'
    path.write_text(
        f"_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n{lines}{loop}"
    )
    config = Config.fromfile(path)
    # The optimizer of the stock config is kept.
    assert config.optim_wrapper.optimizer.type == 'SGD'
    assert config.train_cfg.total_batch_size == 256
    import mmdet.models  # noqa: F401

    init_default_scope('mmdet')
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    runner = Runner.__new__(Runner)
    runner.model = model
    wrapper = Runner.build_optim_wrapper(runner, config.optim_wrapper)
    assert type(wrapper).__name__ == 'AGVMOptimWrapper'
    assert list(wrapper.make_agvm(model).parameters) == [
        'backbone',
        'neck',
        'rpn_head',
        'bbox_head',
    ]
    # The hooks of the stock config are kept.
    assert config.default_hooks.checkpoint.type == 'CheckpointHook'
    hook = HOOKS.build(config.default_hooks.agvm)
    assert isinstance(hook, Hook)
    assert (hook.begin, hook.interval) == ('warmup', 10)


def complete_configs() -> dict[str, str]:
    """Return the complete configs of the method card by toolbox."""
    blocks = re.findall(r'```python config\n(.*?)```', CARD.read_text(), re.DOTALL)
    return {
        base[1]: block
        for block in blocks
        if (base := re.match(r"_base_ = '(\w+)::", block))
    }


def test_method_card_has_a_complete_config_for_each_toolbox():
    assert list(complete_configs()) == ['mmdet', 'mmseg']


@pytest.mark.parametrize(
    'scope, modules, begin, updates',
    [
        ('mmdet', ['backbone', 'neck', 'rpn_head', 'bbox_head'], 919, 7344),
        ('mmseg', ['backbone', 'neck', 'decode_head'], 789, 10000),
    ],
)
def test_complete_config_trains(
    scope: str, modules: list[str], begin: int, updates: int, tmp_path: Path, capsys
):
    path = tmp_path / 'config.py'
    path.write_text(complete_configs()[scope])
    # The plan counts updates; AGVM begins at the peak of the learning rate, within 1%.
    assert run_script('plan.py', path, '--gpus', '8') == 0
    plan = ' '.join(capsys.readouterr().out.split())
    assert f'{updates:,} in all' in plan
    assert f'from update {begin}, every 10' in plan

    cfg = Config.fromfile(path)
    shrink(cfg, str(tmp_path))
    cfg.experiment_name = f'complete-{scope}'
    scope_ready(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.train()
    assert runner.iter == 1
    assert math.isfinite(runner.message_hub.get_scalar('train/loss').current())
    after = list(runner.model.parameters())
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))
    agvm = runner.optim_wrapper.agvm
    assert list(agvm.multipliers) == modules
    assert agvm.num_measurements == 1
    assert any(mu != 1 for mu in agvm.multipliers.values())


def test_linked_files_and_make_targets_exist():
    text = README.read_text()
    for target in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert (README.parent / target).exists(), target
    makefile = (README.parent / 'Makefile').read_text()
    for command in re.findall(r'^make (\w+)', text, re.MULTILINE):
        assert f'\n{command}:' in makefile, command
