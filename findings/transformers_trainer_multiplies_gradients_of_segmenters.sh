#!/usr/bin/env bash
# transformers 5.24.0: Trainer multiplies the gradient of a segmenter by the accumulated passes and
# by the ranks.
#
# It divides a loss by the passes of an update unless the model's `forward` takes further keyword
# arguments, as all models of semantic segmentation do here, and label maps can be counted: then it
# takes the loss for one that the model has divided by the labels of the whole update, and
# multiplies it by the ranks. SegFormer takes the mean over the pixels of its own images, and none
# of the two is undone. Eight images in one pass have a gradient of norm 0.0017 and a loss of
# 1.386, as 4 x 2 twice and as 1 x 8 eight times as much; on two ranks in one pass twice, in four
# eight times. Logged losses grow alike, and a norm at which gradients are clipped is another one
# on each layout. `Trainer.model_accepts_loss_kwargs = False` after its construction restores the
# mean. Known upstream: github.com/huggingface/transformers/issues/47688.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat > accumulate.py <<'PYTHON'
import json
import os
import sys
import tempfile

import torch
import transformers
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
IMAGES, CLASSES, SIZE, LR = 8, 4, 64, 0.01
RANKS = int(os.environ.get('WORLD_SIZE', 1))


def images():
    random = torch.Generator().manual_seed(0)
    return [
        dict(
            pixel_values=torch.randn(3, SIZE, SIZE, generator=random),
            labels=torch.randint(CLASSES, (SIZE, SIZE), generator=random),
        )
        for _ in range(IMAGES)
    ]


def update(passes, restore=False):
    """Return the norm of the gradient of an update of all images, and the loss that is logged."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=CLASSES,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        sr_ratios=[1] * 4,
        decoder_hidden_size=8,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    model = SegformerForSemanticSegmentation(config)
    # Its only layer whose result depends on the other images of a pass.
    model.decode_head.batch_norm = torch.nn.Identity()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=IMAGES // passes // RANKS,
            gradient_accumulation_steps=passes,
            max_steps=1,
            optim='sgd',
            learning_rate=LR,
            lr_scheduler_type='constant',
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            save_strategy='no',
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=images())
        if restore:
            trainer.model_accepts_loss_kwargs = False
        loss = trainer.train().training_loss
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return (after - before).norm().item() / LR, loss


gradients, losses = zip(*(update(passes) for passes in (1, 2, IMAGES // RANKS)))
restored = update(IMAGES // RANKS, restore=True)
if not int(os.environ.get('RANK', 0)):
    with open(sys.argv[1], 'w') as file:
        json.dump([gradients, losses, restored], file)
PYTHON
cat > compare.py <<'PYTHON'
import json

import transformers

one = json.load(open('one.json'))
two = json.load(open('two.json'))
(gradient, *_), (loss, *_), _ = one
seen = {
    ranks: [[round(each / unit, 2) for each in row] for row, unit in zip(rows, (gradient, loss))]
    for ranks, rows in (('one rank', one[:2]), ('two ranks', two[:2]))
}
seen['restored'] = [round(each[2][0] / gradient, 2) for each in (one, two)]
print(f'transformers {transformers.__version__}: gradient {gradient:.4f}, loss {loss:.3f}, {seen}')
assert seen == {
    'one rank': [[1, 2, 8], [1, 2, 8]],
    'two ranks': [[2, 4, 8], [2, 4, 8]],
    'restored': [1, 1],
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore accumulate.py one.json > log 2>&1 || { cat log; exit 1; }
venv/bin/python -m torch.distributed.run --standalone --nproc_per_node 2 \
    accumulate.py two.json > log 2>&1 || { cat log; exit 1; }
venv/bin/python compare.py
