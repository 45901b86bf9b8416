"""Scalars in the event file of TensorBoard."""

import pytest
from runners import make_runner

AGVM = dict(
    type='AGVMOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
)
MODULES = ['backbone', 'neck', 'bbox_head', 'mask_head']


def test_agvm_charts_are_grouped_under_one_name(tmp_path):
    event_accumulator = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator'
    )
    runner = make_runner(
        tmp_path,
        AGVM,
        images=48,
        batch_size=4,
        train_cfg=dict(type='LargeBatchTrainLoop', max_epochs=2, total_batch_size=16),
        hooks=[dict(type='VarianceSyncHook', interval=2, begin=2)],
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')]
        ),
    )
    runner.train()
    runner.visualizer.close()

    (folder,) = tmp_path.glob('*/vis_data')
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    tags = {tag for tag in events.Tags()['scalars'] if tag.startswith('agvm')}
    # TensorBoard groups charts by the part before the first slash.
    expected = {f'agvm/{kind}_{m}' for kind in ('phi', 'mu') for m in MODULES}
    expected |= {f'agvm/noise_scale_{m}' for m in (*MODULES, 'all')}
    assert tags == expected
    wrapper = runner.optim_wrapper
    for module in MODULES:
        last = {
            f'agvm/phi_{module}': wrapper.agvm.variances[module],
            f'agvm/mu_{module}': wrapper.agvm.multipliers[module],
        }
        for tag, expected in last.items():
            # Measured at updates 2 and 4.
            assert [event.step for event in events.Scalars(tag)] == [3, 5]
            assert events.Scalars(tag)[-1].value == pytest.approx(expected)
