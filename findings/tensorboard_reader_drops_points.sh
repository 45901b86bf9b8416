#!/usr/bin/env bash
# tensorboard 2.21.0: EventAccumulator, with which scripts read event files, keeps 10,000 points
# of a curve at random, so a loss that explodes once may not be there.
#
# TensorBoard shows a sample of a long curve, and so does its reader, without a warning. A
# training of 25,000 iterations has a loss of 1, and of 100 at iteration 12,345. Seen: 10,000
# points, none of them at the start, a maximum of 1. The sample is the same each time, as its
# random numbers have a fixed seed. size_guidance={'scalars': 0} reads all points. MMEngine's
# TensorboardVisBackend writes such files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tensorboard==2.21.0 numpy==2.4.6 setuptools==80.10.2
cd "$folder"
cat > points.py <<'PYTHON'
import tensorboard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

writer = EventFileWriter('log')
for step in range(25_000):
    loss = Summary.Value(tag='loss', simple_value=100 if step == 12_345 else 1)
    writer.add_event(Event(step=step, wall_time=step, summary=Summary(value=[loss])))
writer.close()


def summary(**kwargs):
    """Return the number of points, the first and last step, and the largest value."""
    events = EventAccumulator('log', **kwargs)
    events.Reload()
    points = events.Scalars('loss')
    return len(points), points[0].step, points[-1].step, max(point.value for point in points)


seen = {'default': summary(), 'all': summary(size_guidance={'scalars': 0})}
print(f'tensorboard {tensorboard.__version__}: {seen}')
assert seen == {
    'default': (10_000, 2, 24_999, 1.0),
    'all': (25_000, 0, 24_999, 100.0),
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore points.py
