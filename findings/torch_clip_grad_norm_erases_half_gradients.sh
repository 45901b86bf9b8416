#!/usr/bin/env bash
# torch 2.13.0: clip_grad_norm_ sets all gradients of a float16 model to 0 if their norm is
# over 65504, so the model stands still, without a word.
#
# The norm has the type of the gradients. Where it is not in the range of float16 it is inf, though
# each gradient is finite, and all are multiplied by max_norm / inf = 0. A million weights with
# gradients of 100 have a norm of 100,000: right are gradients of 1e-5 * 100 for a norm of
# 1, as float64 has them. Seen: a returned norm of inf, and zeros. error_if_nonfinite=True,
# which is not the default, raises. In bfloat16 the returned norm is rounded to three digits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > half.py <<'PYTHON'
import math

import torch


def clipped(kind):
    """Return the norm of gradients of 100, as computed, and after clipping to 1."""
    weight = torch.nn.Parameter(torch.zeros(1000, 1000, dtype=kind))
    weight.grad = torch.full_like(weight, 100.0)
    finite = weight.grad.isfinite().all().item()
    norm = torch.nn.utils.clip_grad_norm_([weight], max_norm=1.0)
    return finite, norm.item(), round(weight.grad.double().norm().item(), 2)


seen = {str(kind): clipped(kind) for kind in (torch.float16, torch.bfloat16, torch.float64)}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'torch.float16': (True, math.inf, 0.0),
    'torch.bfloat16': (True, 99840.0, 1.0),
    'torch.float64': (True, 100000.0, 1.0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore half.py
