"""The lines for a config in the README work on a stock config."""

import re
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.runner import Runner

README = Path(__file__).parent.parent / 'README.md'


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


def test_linked_files_and_make_targets_exist():
    text = README.read_text()
    for target in re.findall(r'\]\((?!http)([^)#]+)\)', text):
        assert (README.parent / target).exists(), target
    makefile = (README.parent / 'Makefile').read_text()
    for command in re.findall(r'^make (\w+)', text, re.MULTILINE):
        assert f'\n{command}:' in makefile, command
