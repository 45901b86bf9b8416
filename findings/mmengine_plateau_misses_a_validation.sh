#!/usr/bin/env bash
# mmengine 0.10.7 with torch 2.13.0: a resumed run with ReduceOnPlateauLR has a learning rate
# that an uninterrupted one never has at that epoch.
#
# CheckpointHook saves before the validation of the same epoch, whose result the scheduler
# follows, and a resumed run begins with the next epoch. The score of this model never changes,
# so the rate halves after the validations of epochs 2 and 3 (not after the last, where the
# scheduler has ended). Four epochs in one go end at 0.025. Seen in the same run, resumed from
# its checkpoint of epoch 2: 0.05, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.13.0 numpy==2.4.6 \
    opencv-python-headless==5.0.0.93 setuptools==80.10.2
cd "$folder"
cat > plateau.py <<'PYTHON'
import warnings

import torch
from mmengine import __version__
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner

warnings.simplefilter('ignore')


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='loss'):
        if mode == 'loss':
            return dict(loss=(self.weight * inputs).square().mean())
        return [dict(score=1.0)]


class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(score=results[0]['score'])


def images():
    return torch.utils.data.DataLoader([dict(inputs=torch.ones(1))] * 2)


def last_rate(folder, **kwargs):
    runner = Runner(
        model=Model(),
        work_dir=folder,
        train_dataloader=images(),
        val_dataloader=images(),
        val_evaluator=Evaluator(Score()),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=dict(
            type='ReduceOnPlateauLR', monitor='score', rule='greater', factor=0.5, patience=0
        ),
        experiment_name=folder,
        log_level='ERROR',
        **kwargs,
    )
    runner.train()
    return runner.optim_wrapper.get_lr()['lr'][0]


# The files are of this very script: types that torch refuses by default may load.
load = torch.load
torch.load = lambda *args, **kwargs: load(*args, **kwargs | dict(weights_only=False))
whole = last_rate('whole')
resumed = last_rate('parts', load_from='whole/epoch_2.pth', resume=True)
print(f'mmengine {__version__}, torch {torch.__version__}: in one go {whole}, resumed {resumed}')
assert (whole, resumed) == (0.025, 0.05), 'the behavior has changed'
PYTHON
venv/bin/python plateau.py 2> log | tail -n 1
