#!/usr/bin/env bash
# mmengine 0.10.7: EMAHook averages after every pass, not after every update, so with
# accumulative_counts=4 its average is nearly four times as short.
#
# The same eight updates are made from 8 batches, or from 32 with accumulative_counts=4. The
# weight goes from 1 to 8 in steps of 1 both times. An average with a momentum of 0.1 over
# the weights after each update is 3.30. Seen with accumulation: 5.47, for each weight goes
# in four times, which is a momentum of 1 - 0.9^4 = 0.34. No warning. A momentum divided by
# accumulative_counts is about right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.13.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 setuptools==80.10.2
cd "$folder"
cat > average.py <<'PYTHON'
import torch
from mmengine import __version__
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode='loss'):
        return dict(loss=-(self.weight * inputs).mean())


def trained(counts):
    """Return the weight after eight updates, and its average."""
    hook = EMAHook(momentum=0.1)
    model = Model()
    Runner(
        model=model,
        work_dir='work',
        train_dataloader=torch.utils.data.DataLoader([dict(inputs=torch.ones(1))] * 8 * counts),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0), accumulative_counts=counts),
        custom_hooks=[hook],
        default_hooks=dict(checkpoint=None),
        experiment_name=f'counts{counts}',
        log_level='ERROR',
    ).train()
    return [round(each.weight.item(), 2) for each in (model, hook.ema_model.module)]


average = 1.0
for weight in range(2, 9):
    average = 0.9 * average + 0.1 * weight
seen = {'no accumulation': trained(1), '4 passes': trained(4), 'right': [8.0, round(average, 2)]}
print(f'mmengine {__version__}: {seen}')
assert seen == {
    'no accumulation': [8.0, 3.3],
    '4 passes': [8.0, 5.47],
    'right': [8.0, 3.3],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore average.py 2> log | tail -n 1
