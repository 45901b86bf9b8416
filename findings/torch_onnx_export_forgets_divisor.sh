#!/usr/bin/env bash
# torch 2.13.0 with onnxruntime 1.32.0: torch.onnx.export forgets divisor_override of average
# pooling, so the exported model has other numbers than the model.
#
# ONNX's AveragePool has no such argument, and the exporter translates the pooling without it.
# divisor_override=1 is the short way to add up a window, as counts of objects or sums of an
# integral image need: of 2 x 2 ones, torch has a sum of 4, and the exported model in onnxruntime
# the mean, 1; of 2 x 2 x 2 ones, 8 and 1. export succeeds without a word; verify=True only
# logs a difference. A mean times the size of the window is exported right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 \
    onnxruntime==1.32.0
cd "$folder"
cat > pool.py <<'PYTHON'
import onnxruntime
import torch


class Sum(torch.nn.Module):
    """Adds up windows of 2 pixels in each direction."""

    def __init__(self, dimensions, override):
        super().__init__()
        pooling = {2: torch.nn.AvgPool2d, 3: torch.nn.AvgPool3d}[dimensions]
        self.pool = pooling(2, divisor_override=1 if override else None)
        self.factor = 1 if override else 2**dimensions

    def forward(self, image):
        return self.pool(image) * self.factor


def sums(dimensions, override):
    """Return the sum of a window of ones in torch and in onnxruntime."""
    image = torch.ones(1, 1, *[2] * dimensions)
    model = Sum(dimensions, override).eval()
    torch.onnx.export(model, (image,), 'sum.onnx', dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession('sum.onnx')
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return model(image).item(), result.item()


seen = {
    f'{name}, {dimensions}d': sums(dimensions, name == 'divisor_override')
    for name in ('divisor_override', 'mean times size')
    for dimensions in (2, 3)
}
print(f'torch {torch.__version__}, onnxruntime {onnxruntime.__version__}: {seen}')
assert seen == {
    'divisor_override, 2d': (4.0, 1.0),
    'divisor_override, 3d': (8.0, 1.0),
    'mean times size, 2d': (4.0, 4.0),
    'mean times size, 3d': (8.0, 8.0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore pool.py 2> log | tail -n 1
