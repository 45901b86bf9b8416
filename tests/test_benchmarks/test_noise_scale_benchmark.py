"""noise_scale.py: schedule, search, fit, and comparison on gradients that are known."""

import json
import math
from pathlib import Path

import noise_scale
import numpy as np
import pytest
import torch
from common import race
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from torch import nn
from torch.optim import SGD

from agvm_mm.method.noise_scale import predicted_variance
from agvm_mm.report.gradient_noise import replicas
from agvm_mm.report.gradient_noise.intervals import GradientSums
from agvm_mm.report.gradient_noise.replicas import sum_replicas
from demo import write_digits

pytestmark = pytest.mark.evidence

SCALES = dict(backbone=500.0, head=40.0)


@pytest.mark.parametrize('model', list(noise_scale.CONFIGS))
def test_short_training_has_the_schedule_of_the_config(model: str):
    original = Config.fromfile(noise_scale.ROOT / noise_scale.CONFIGS[model])
    cfg = noise_scale.short_config(model, 16)

    def rates(config: Config) -> list[float]:
        """Return the learning rate of each of 160 updates, by MMEngine's schedulers."""
        lr = config.optim_wrapper.optimizer.lr
        wrapper = OptimWrapper(SGD([nn.Parameter(torch.zeros(1))], lr=lr))
        schedulers = [
            PARAM_SCHEDULERS.build(dict(each), default_args=dict(optimizer=wrapper))
            for each in config.param_scheduler
        ]
        found = []
        for update in range(1, 161):
            found.append(wrapper.optimizer.param_groups[0]['lr'])
            for scheduler in schedulers:
                if not scheduler.by_epoch or update % 16 == 0:
                    scheduler.step()
        return found

    np.testing.assert_allclose(rates(cfg), np.array(rates(original)) / 2)
    assert list(noise_scale.moments(cfg)) == [48, 112, 128, 144, 160]
    # Each is a checkpoint.
    assert all(update % 16 == 0 for update in noise_scale.moments(cfg))


def gaussian_sums(
    replicas: int, images: int, seed: int = 0, width: int = 4000
) -> GradientSums:
    """Return the sums of Gaussian gradients with the noise scales ``SCALES``."""
    rng = np.random.default_rng(seed)
    blocks, size = replicas // 8, 8
    tables, means = [], []
    # |g|^2 = width, and s^2 = scale * width.
    noise = [math.sqrt(scale / images) for scale in SCALES.values()]
    gradients = (
        [torch.tensor(1 + each * rng.normal(size=width)) for each in noise]
        for _ in range(replicas)
    )
    for _ in range(blocks):
        squares = torch.zeros(2, 4, dtype=torch.float64)
        total = sum_replicas(gradients, 3, torch.tensor([0, 1]), squares)
        tables.append(squares / torch.tensor([8, 4, 2, 1]))
        means.append(torch.stack(total) / size)
    rows = torch.stack(means, 1)
    gram = rows @ rows.transpose(1, 2)
    return GradientSums(
        tuple(SCALES), images, size, torch.stack(tables).permute(1, 2, 0), gram
    )


def test_comparison_on_gaussian_gradients():
    rows = noise_scale.compare(gaussian_sums(256, 16))
    assert [(row['module'], row['batch']) for row in rows] == [
        (module, batch)
        for batch in (256, 1024)
        for module in ('backbone', 'head', 'all')
    ]
    for row in rows:
        if row['module'] in SCALES:
            scale = SCALES[row['module']]
            expected = predicted_variance(row['batch'], scale)
            assert row['measured']['value'] == pytest.approx(expected, rel=0.05)
            assert row['predicted']['value'] == pytest.approx(expected, rel=0.05)
            assert row['noise_scale']['value'] == pytest.approx(scale, rel=0.1)
        assert row['ratio']['value'] == pytest.approx(
            row['predicted']['value'] / row['measured']['value']
        )
    found = noise_scale.summarize([dict(row, model='m', update=1) for row in rows])
    assert [(row['batch'], row['cells']) for row in found] == [(256, 3), (1024, 3)]
    assert all(row['largest'] < 0.1 for row in found)


def test_interval_of_the_ratio_holds_in_about_19_of_20_draws():
    ratios = [
        row['ratio']
        for seed in range(30)
        for row in noise_scale.compare(gaussian_sums(128, 16, seed, width=50))
        if row['module'] in SCALES
    ]
    inside = sum(each['low'] <= 1 <= each['high'] for each in ratios)
    assert 0.85 <= inside / len(ratios) <= 1


def test_comparison_finds_a_wrong_prediction():
    sums = gaussian_sums(256, 16)
    # As if replicas were coupled: their common mean holds more signal than theirs.
    sums.gram.mul_(1.5)
    rows = noise_scale.compare(sums)
    large = [row for row in rows if row['batch'] == 1024]
    assert all(row['ratio']['low'] > 1 for row in large)


def test_target_is_crossed_between_updates_at_the_middle_of_the_window():
    # Loss of update i is 10 - i.
    losses = [10.0 - i for i in range(10)]
    assert race.crossing(losses, 5.5, 1) == pytest.approx(4.5)
    for window in (2, 3, 4):
        assert race.crossing(losses, 5.75, window) == pytest.approx(4.25)
    assert race.crossing(losses, 0.5, 1) is None
    assert race.crossing(losses[:3], 9.5, 4) is None
    assert race.crossing(losses, 10.0, 1) == 0


@pytest.mark.parametrize('first', [0.125, 0.5, 1.0, 4.0])
def test_search_finds_the_best_rate_and_stops_the_others(first: float):
    limits = []

    def train(lr: float, limit: int) -> float | None:
        limits.append(limit)
        needed = 20 + 10 * abs(math.log2(lr))
        return needed if needed <= limit else None

    best, tried = race.search(train, first, 100)
    assert best == 1.0
    assert tried[1.0] == 20
    # Both neighbors were tried, and nothing ran longer than the best before it.
    assert {0.5, 2.0} <= set(tried)
    assert limits == sorted(limits, reverse=True)


def test_search_without_a_rate_that_reaches_the_target():
    best, tried = race.search(lambda lr, limit: None, 1.0, 100)
    assert best is None
    assert tried == {1.0: None, 2.0: None, 0.5: None}


def test_fit_recovers_a_curve():
    batches = [16, 64, 256, 1024]
    updates = [30 * (1 + 90 / batch) for batch in batches]
    fewest, error = race.fit_fewest(batches, updates, 90)
    assert (fewest, error) == (pytest.approx(30), pytest.approx(0, abs=1e-9))
    scale, fewest, error = race.fit_noise_scale(batches, updates)
    assert (scale, fewest) == (pytest.approx(90, rel=0.01), pytest.approx(30, rel=0.01))
    assert error < 0.005
    assert race.fit_fewest(batches, updates, 900)[1] > 0.3


def test_a_finished_run_is_kept_unless_its_settings_change(tmp_path: Path):
    settings = dict(start='start.pth', target=1.0, window=64, micro_batch=16)
    settings |= dict(batch=64, lr=0.1, seed=0)
    calls = []

    def result(updates: float | None, limit: int, run: dict = settings) -> dict:
        def train() -> dict:
            calls.append(limit)
            return dict(updates=updates, losses=[1.0])

        return race.read_or_train(tmp_path / 'a/run.json', run, limit, train)

    assert result(None, 20)['updates'] is None
    assert result(7.0, 10)['updates'] is None  # Kept: 20 updates were too few.
    assert result(30.0, 40)['updates'] == 30.0
    assert result(1.0, 100)['updates'] == 30.0
    assert json.loads((tmp_path / 'a/run.json').read_text())['updates'] == 30.0
    changed = settings | dict(target=0.5)
    assert result(60.0, 100, changed)['updates'] == 60.0
    assert calls == [20, 40, 100]


@pytest.mark.parametrize('replica', [64, 24, 128])
def test_replicas_that_do_not_make_up_a_batch_are_refused(replica: int):
    with pytest.raises(ValueError, match=f'--images-per-replica {replica}: 64 images'):
        noise_scale.main(['--images-per-replica', str(replica)])


def test_updates_are_run_reported_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    write_digits('data/digits', num_train=128, num_val=1, progress=False)

    def train(cfg: Config, folder: Path) -> None:
        """Write the weights of a network that was not trained."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        weights = replicas.build_model(cfg).state_dict()
        path = noise_scale.checkpoint(folder, cfg.train_cfg.max_iters)
        torch.save(dict(state_dict=weights), path)

    init_default_scope('mmseg')
    monkeypatch.setattr(noise_scale, 'train', train)
    monkeypatch.setattr(noise_scale, 'LARGER', (128,))
    arguments = ['--parts', 'updates', '--images', '128', '--batches', '16', '32', '64']
    arguments += ['--target', '2.3', '--window', '32', '--first-lr', '0.05']
    arguments += ['--work-dirs', str(tmp_path / 'work'), '--out', str(tmp_path / 'out')]
    noise_scale.main(arguments)
    result = json.loads((tmp_path / 'out/noise_scale_updates.json').read_text())
    assert [row['batch'] for row in result['rows']] == [16, 32, 64]
    for row in result['rows']:
        known = [each for each in row['tried'].values() if each is not None]
        assert row['updates'] == pytest.approx(min(known))
        assert row['tried'][f'{row["lr"]:g}'] == min(known)
    assert result['fits'][-1]['name'] == 'fitted'
    assert {row['module'] for row in result['at_start']} >= {'backbone', 'all'}

    def no_training(*args: object) -> None:
        raise AssertionError('trained again')

    capsys.readouterr()
    monkeypatch.setattr(race.Course, 'train', no_training)
    noise_scale.main(arguments)
    again = json.loads((tmp_path / 'out/noise_scale_updates.json').read_text())
    assert again['rows'] == result['rows']
