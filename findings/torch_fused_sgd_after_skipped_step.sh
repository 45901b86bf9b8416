#!/usr/bin/env bash
# torch 2.13.0: SGD(fused=True) with momentum starts from memory that was never written if the
# gradient scaler skips its first update.
#
# The buffer of the momentum is made with empty_like, for the kernel to fill. The kernel does
# nothing when the scaler has found an infinity, and float16 training often begins with that,
# at a scale of 65536. The next update takes the buffer for a momentum: weights of -8e33 were
# seen, or NaN, or right ones where the memory happened to hold zeros.
# Deterministic algorithms make torch fill such memory with NaN, so it is seen at any time.
# Right, and what SGD does that is not fused, is a first momentum that is the gradient: 1 and
# 1.9, so weights of 0.9 and 0.71. Seen: NaN. Adam and AdamW have no such fault.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > skip.py <<'PYTHON'
import torch

torch.use_deterministic_algorithms(True)


def weights(kind, first, **kwargs):
    """Return a weight after each of three updates, the first with a given gradient."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = kind([weight], lr=0.1, **kwargs)
    scaler = torch.amp.GradScaler('cpu', init_scale=1.0)
    seen = []
    for gradient in (first, 1.0, 1.0):
        scaler.scale(torch.ones(()))
        weight.grad = torch.full((1,), gradient)
        scaler.step(optimizer)
        scaler.update(1.0)
        seen.append(round(weight.item(), 3))
    return str(seen)


infinity = float('inf')
seen = {
    'not fused, skipped': weights(torch.optim.SGD, infinity, momentum=0.9),
    'fused, skipped': weights(torch.optim.SGD, infinity, momentum=0.9, fused=True),
    'fused, nothing skipped': weights(torch.optim.SGD, 1.0, momentum=0.9, fused=True),
    'Adam fused, skipped': weights(torch.optim.Adam, infinity, fused=True),
}
print(f'torch {torch.__version__}: {seen}')
assert seen == {
    'not fused, skipped': '[1.0, 0.9, 0.71]',
    'fused, skipped': '[1.0, nan, nan]',
    'fused, nothing skipped': '[0.9, 0.71, 0.439]',
    'Adam fused, skipped': '[1.0, 0.9, 0.8]',
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore skip.py
