#!/usr/bin/env bash
# mmdet 3.3.0: tools/analysis_tools/analyze_logs.py loses the step of every training record
# that has a name with a slash, and the values behind it.
#
# It takes a record with such a name for one of a validation. MMEngine writes the names of
# logged values as they are, so a model that logs `aux/loss_cls` beside `loss` is enough. Of
# four records, two of which have it, the loss curve keeps two points, and names that differ
# before the last slash become one curve. Names without a slash are read right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps mmdet==3.3.0
"$folder/venv/bin/pip" install -q numpy==2.4.6 matplotlib==3.11.2 seaborn==0.13.2
cd "$folder"
cat > read.py <<'PYTHON'
import importlib.util
import json
import sysconfig
from pathlib import Path

site = Path(sysconfig.get_path('purelib'))
tool = site / 'mmdet/.mim/tools/analysis_tools/analyze_logs.py'
spec = importlib.util.spec_from_file_location('analyze_logs', tool)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
records = [
    {'lr': 0.1, 'aux/loss_cls': 0.3, 'main/loss_cls': 0.2, 'loss': 1.0, 'step': 1},
    {'lr': 0.1, 'loss': 0.9, 'step': 2},
    {'lr': 0.1, 'aux/loss_cls': 0.2, 'main/loss_cls': 0.1, 'loss': 0.8, 'step': 3},
    {'lr': 0.1, 'loss': 0.7, 'step': 4},
]
Path('scalars.json').write_text('\n'.join(map(json.dumps, records)))
(epochs,) = module.load_json_logs(['scalars.json'])
seen = {name: epochs[1][name] for name in ('step', 'loss', 'loss_cls')}
print(f'mmdet 3.3.0: {seen}')
assert seen == {
    'step': [2, 4],
    'loss': [0.9, 0.7],
    'loss_cls': [0.3, 0.2, 0.2, 0.1],
}, 'the behavior has changed'
PYTHON
venv/bin/python read.py
