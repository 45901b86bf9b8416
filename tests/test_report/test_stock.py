"""Stock configs of the toolboxes with AGVM, and the page of docs that lists them."""

import copy
import re
from pathlib import Path

import pytest
from cases import for_each
from mmengine.optim import build_optim_wrapper
from scripts import run_script
from stock import stock
from toy import ToyDetector

pytestmark = pytest.mark.evidence

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/zoo.md').read_text(encoding='utf-8')
DETR = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'


def rows(heading, text=PAGE):
    """Return the cells of the table below a heading."""
    section = text.split(f'{heading}\n')[1].split('\n## ')[0]
    cells = re.findall(r'^\| (.*) \|$', section, re.M)[2:]
    return [re.split(r' \| ', line) for line in cells]


FAMILIES = rows('## Modules of each model')
REASONS = rows('## Not the same')
OUTCOMES = {row[0]: (int(row[1]), int(row[2])) for row in rows('# Stock configs')}


@for_each(FAMILIES)
def test_model_has_the_documented_modules_and_the_stock_optimizer(row):
    family, modules, _, config, _ = row
    (result,) = stock.examine_all([config.strip('`')])
    assert (result.outcome, result.reason) == ('same', '')
    assert result.family == family
    assert ', '.join(result.modules) == modules


def test_page_covers_every_stock_config():
    assert set(OUTCOMES) == set(stock.OUTCOMES)
    assert OUTCOMES['different'] == (0, 0)
    assert sum(int(row[2]) for row in FAMILIES) == sum(OUTCOMES['same'])
    for outcome, counts in OUTCOMES.items():
        if outcome != 'same':
            own = [int(row[1]) for row in REASONS if row[0] == outcome]
            assert sum(own) == sum(counts)
    updates = rows('## One update of each model')
    assert sum(int(row[1]) for row in updates) == len(FAMILIES)
    for index, toolbox in enumerate(stock.TOOLBOXES):
        files = len(stock.stock_configs(toolbox))
        # A few files train nothing, such as those of test-time augmentation.
        assert (
            0.95 * files < sum(counts[index] for counts in OUTCOMES.values()) <= files
        )


@pytest.mark.parametrize(
    'config, lines',
    [
        (DETR, dict(type='AGVMOptimWrapper')),
        (
            'mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py',
            dict(type='AGVMOptimWrapper'),
        ),
        (
            'mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py',
            dict(type='AGVMOptimWrapper'),
        ),
        (
            'mmseg::beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py',
            dict(type='AGVMAmpOptimWrapper'),
        ),
    ],
)
def test_lines_of_the_readme_are_added_and_all_others_kept(config, lines):
    cfg = stock.load(config)
    before = copy.deepcopy(cfg.to_dict())
    stock.add_agvm(cfg)
    after = cfg.to_dict()
    assert after['optim_wrapper'] == before['optim_wrapper'] | lines
    hook = after['default_hooks'].pop('agvm')
    assert hook['type'] == 'VarianceSyncHook'
    after['optim_wrapper'] = before['optim_wrapper']
    assert after == before


CFG = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.01))
AGVM = dict(type='AGVMOptimWrapper')


def check_differences(changes, found):
    model = ToyDetector()
    stock_wrapper = build_optim_wrapper(model, CFG)
    wrapper = build_optim_wrapper(model, CFG | AGVM | changes)
    different = stock.differences(model, stock_wrapper, wrapper)
    assert bool(different) == bool(found)
    for word in found:
        assert word in different[0]


DIFFERENCES = [
    (dict(), []),
    (dict(optimizer=dict(type='AdamW', lr=0.2, weight_decay=0.01)), ['lr']),
    (dict(optimizer=dict(type='AdamW', lr=0.1)), []),
    (
        dict(optimizer=dict(type='AdamW', lr=0.1, betas=(0.8, 0.99))),
        ['betas'],
    ),
    (dict(paramwise_cfg=dict(bias_decay_mult=0.0)), ['bias']),
    (dict(clip_grad=dict(max_norm=1)), ['clip_grad']),
    (dict(accumulative_counts=2), ['accumulative_counts']),
    (dict(optimizer=dict(type='SGD', lr=0.1)), ['optimizer', 'SGD']),
]


def test_differences_are_found(subtests):
    for changes, found in DIFFERENCES:
        with subtests.test(changes=changes, found=found):
            check_differences(changes, found)


def test_left_out_and_repeated_parameters_are_found():
    model = ToyDetector()
    stock_wrapper = build_optim_wrapper(model, CFG)
    wrapper = build_optim_wrapper(model, CFG)
    (group,) = wrapper.optimizer.param_groups
    last = group['params'].pop()
    different = stock.differences(model, stock_wrapper, wrapper)
    assert len(different) == 1
    assert different[0].startswith('roi_head.mask_head.bias: None instead of')
    group['params'] += [last, last]
    assert len(stock.differences(model, stock_wrapper, wrapper)) == 1


def test_refused_and_unbuildable_configs_have_a_reason():
    refused, broken = stock.examine_all(
        [
            'mmseg::san/san-vit-b16_coco-stuff164k-640x640.py',
            'mmdet::v3det/fcos_swinb_fpn_8x4_sample1e-3_mstrain_v3det_2x.py',
        ]
    )
    assert refused.outcome == 'refused'
    assert "anchor='backbone' is not a module" in refused.reason
    assert broken.outcome == 'not built'
    assert 'force_grad_on_level' in broken.reason


def test_configs_that_train_nothing_are_left_out():
    assert stock.examine_all(['mmdet::retinanet/retinanet_tta.py']) == []


def test_another_optimizer_fails(tmp_path, monkeypatch, capsys):
    def with_more_decay(cfg):
        add_agvm(cfg)
        cfg.optim_wrapper.optimizer.weight_decay = 0.5

    add_agvm = stock.add_agvm
    monkeypatch.setattr(stock, 'add_agvm', with_more_decay)
    arguments = ['--only', 'detr_r50_8xb2-150e', '--out', tmp_path / 'zoo.md']
    assert run_script('dev/zoo.py', *arguments) == 1
    assert 'weight_decay' in capsys.readouterr().out
    page = (tmp_path / 'zoo.md').read_text()
    assert ['different', '1', '0'] in [row[:3] for row in rows('# Stock configs', page)]


def test_detector_with_a_teacher_is_built():
    """Its ``train`` returns nothing."""
    (result,) = stock.examine_all(['mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py'])
    assert result.outcome == 'same'
