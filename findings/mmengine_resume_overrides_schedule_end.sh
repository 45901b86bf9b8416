#!/usr/bin/env bash
# mmengine 0.10.7 with torch 2.13.0: a run that resumes with more epochs keeps the `end` of
# its parameter schedulers from the checkpoint, without a word.
#
# Runner sets `end` of a scheduler that counts epochs to max_epochs of the config, and the
# scheduler saves it with its state. A training of 2 epochs is continued to 4 with a step at
# epoch 3. A run of 4 epochs in one go ends at a learning rate of 0.05. Seen in the resumed
# run: 0.1, for the loaded scheduler has ended at epoch 2, and its step at 3 never comes.
# Name `end` in the config from the start, or resume with param_schedulers removed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mmengine==0.10.7 torch==2.13.0 numpy==2.4.6 opencv-python-headless==5.0.0.93 \
    setuptools==80.10.2
cd "$folder"
cat > resume.py <<'PYTHON'
import warnings

import torch
from mmengine import __version__
from mmengine.model import BaseModel
from mmengine.runner import Runner

warnings.simplefilter('ignore')


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='loss'):
        return dict(loss=(self.weight * inputs).square().mean())


def last_rate(folder, epochs, **kwargs):
    runner = Runner(
        model=Model(),
        work_dir=folder,
        train_dataloader=torch.utils.data.DataLoader([dict(inputs=torch.ones(1))] * 4),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        param_scheduler=dict(type='MultiStepLR', milestones=[3], gamma=0.5),
        experiment_name=f'{folder}{epochs}',
        log_level='ERROR',
        **kwargs,
    )
    runner.train()
    return runner.optim_wrapper.get_lr()['lr'][0]


# The files are of this very script: types that torch refuses by default may load.
load = torch.load
torch.load = lambda *args, **kwargs: load(*args, **kwargs | dict(weights_only=False))
whole = last_rate('whole', 4)
last_rate('parts', 2)
resumed = last_rate('parts', 4, resume=True)
print(f'mmengine {__version__}, torch {torch.__version__}: in one go {whole}, resumed {resumed}')
assert (whole, resumed) == (0.05, 0.1), 'the behavior has changed'
PYTHON
venv/bin/python resume.py 2> log | tail -n 1
