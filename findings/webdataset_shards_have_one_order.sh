#!/usr/bin/env bash
# webdataset 1.0.2: WebDataset(shardshuffle=N) reads the shards in the same order in every epoch.
#
# The seed is drawn once, when the data set is built, and each pass starts from it again, with and
# without an argument seed. The documentation says that shards are shuffled, and has
# detshuffle=True for orders that can be repeated; no warning. Orders of samples change with
# .shuffle(), but only within its buffer, so neighbors stay neighbors: a network sees the same
# cities or days at the same time of each epoch. Seen with 16 shards and 6 epochs: one order, also
# with a seed, and six orders with detshuffle=True, which in workers that start anew with each epoch
# has the same problem (issue 172 of webdataset).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q webdataset==1.0.2 braceexpand==0.1.7 numpy==2.4.6 pyyaml==6.0.4
cd "$folder"
unset WDS_SEED
cat > epochs.py <<'PYTHON'
import io
import tarfile
from importlib.metadata import version

from webdataset import WebDataset

SHARDS, SAMPLES, EPOCHS = 16, 4, 6
for shard in range(SHARDS):
    with tarfile.open(f'{shard:02}.tar', 'w') as archive:
        for sample in range(SAMPLES):
            text = str(shard).encode()
            member = tarfile.TarInfo(f'{shard:02}-{sample}.txt')
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))


def orders(**settings):
    """Return how many orders of shards there are in several epochs of one data set."""
    dataset = WebDataset('{00..15}.tar', shardshuffle=100, **settings)
    found = set()
    for _ in range(EPOCHS):
        shards = tuple(int(sample['txt']) for sample in dataset)[::SAMPLES]
        assert sorted(shards) == list(range(SHARDS))
        found.add(shards)
    assert tuple(range(SHARDS)) not in found
    return len(found)


seen = {
    'shardshuffle': orders(),
    'shardshuffle, seed': orders(seed=1),
    'shardshuffle, seed, detshuffle': orders(seed=1, detshuffle=True),
}
print(f'webdataset {version("webdataset")}: orders in {EPOCHS} epochs: {seen}')
assert seen == {
    'shardshuffle': 1,
    'shardshuffle, seed': 1,
    'shardshuffle, seed, detshuffle': EPOCHS,
}, 'the behavior has changed'
PYTHON
venv/bin/python -W ignore epochs.py
