"""Output of tools/dev/make_configs.py, and the metafiles that MIM reads."""

import json
import subprocess
import sys

import yaml
from zoo import ROOT, ZOO, load, name_of


def test_checked_in_files_are_what_the_generator_writes(tmp_path):
    done = subprocess.run(
        [sys.executable, 'tools/dev/make_configs.py', '--out', str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    written = [path for path in tmp_path.rglob('*') if path.is_file()]
    for path in written:
        checked_in = ROOT / path.relative_to(tmp_path)
        assert checked_in.read_text() == path.read_text(), path.name
    # There is no leaf that it does not write.
    leaves = {
        str(path.relative_to(tmp_path / 'configs').with_suffix(''))
        for path in written
        if path.suffix == '.py'
    }
    assert leaves == set(ZOO)


def metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text(encoding='utf-8'))
    for path in index['Import']:
        yield path, yaml.safe_load((ROOT / path).read_text(encoding='utf-8'))


def test_metafiles_list_every_config_once():
    listed = []
    for path, metafile in metafiles():
        names = {collection['Name'] for collection in metafile['Collections']}
        for model in metafile['Models']:
            assert model['In Collection'] in names
            config = ROOT / model['Config']
            assert config.is_file() and config.stem == model['Name']
            assert config.parent == (ROOT / path).parent
            leaf = str(config.relative_to(ROOT / 'configs').with_suffix(''))
            metadata = model['Metadata']
            assert metadata['Total Batch Size'] == name_of(leaf).batch
            if 'max_epochs' in load(leaf).train_cfg:
                assert metadata['Epochs'] == load(leaf).train_cfg.max_epochs
            else:
                assert metadata['Updates'] == load(leaf).train_cfg.max_iters
            listed.append(leaf)
    assert sorted(listed) == ZOO


# Configs of the cells of the paper, by table and model.
RUNS = {
    ('sgd_four_tasks', 'faster_rcnn'): 'faster_rcnn/faster-rcnn_r50_fpn_{}_16e',
    ('sgd_four_tasks', 'mask_rcnn'): 'mask_rcnn/mask-rcnn_r50_fpn_{}_14e',
    ('sgd_four_tasks', 'panoptic_fpn'): 'panoptic_fpn/panoptic-fpn_r50_fpn_{}_14e',
    ('adamw_faster_rcnn', 'faster_rcnn'): 'faster_rcnn/faster-rcnn_r50_fpn_{}_12e',
    ('retinanet_extreme', 'retinanet_r18'): 'retinanet/retinanet_r18_fpn_{}_12e',
    ('open_source_rerun', 'faster_rcnn'): 'faster_rcnn/faster-rcnn_r50_fpn_{}_16e',
    ('open_source_rerun', 'mask_rcnn'): 'mask_rcnn/mask-rcnn_r50_fpn_{}_16e',
}
METHODS = {
    'sgd_four_tasks': {'MegDet': 'sgd', 'LARS': 'lars', 'AGVM': 'agvm-sgd'},
    'adamw_faster_rcnn': {
        'AdamW': 'adamw',
        'LAMB': 'lamb',
        'PMD-LAMB': 'pmd-lamb',
        'AGVM': 'agvm-adamw',
    },
    'retinanet_extreme': {'PMD-LAMB': 'pmd-lamb', 'AGVM': 'agvm-adamw'},
    'open_source_rerun': {'baseline': 'sgd', 'AGVM': 'agvm-sgd'},
}
SEMANTIC_LENGTH = {32: '160k', 512: '10k', 1024: '5k', 2048: '2500iters'}


def cells():
    """Yield config, metric, value and updates (or None) of each cell that we run."""
    text = (ROOT / 'configs' / 'paper_results.json').read_text(encoding='utf-8')
    for key, table in json.loads(text)['tables'].items():
        for row in table['rows']:
            batch = row['batch_size']
            for column, value in zip(table['columns'], row['values'], strict=True):
                method = METHODS.get(key, {}).get(column)
                if method is None or value is None:
                    continue  # SAM, UniNet-G and empty cells
                if row['model'] == 'semantic_fpn':
                    length = SEMANTIC_LENGTH[batch]
                    leaf = f'sem_fpn/sem-fpn_r50_{method}_b{batch}_{length}'
                    leaf += '_ade20k-512x512'
                else:
                    leaf = RUNS[key, row['model']].format(f'{method}_b{batch}')
                    leaf += '_coco'
                yield leaf, row['metric'], value, row.get('iterations')


def test_every_cell_of_the_paper_has_its_config_and_figure():
    figures, updates = {}, {}
    for _, metafile in metafiles():
        for model in metafile['Models']:
            leaf = model['Config'].removeprefix('configs/').removesuffix('.py')
            updates[leaf] = model['Metadata']['Updates']
            key = 'Figures of the AGVM paper, not measured here'
            figures[leaf] = sorted(
                figure.split(': ')[0] for figure in model['Metadata'].get(key, [])
            )
    expected = {leaf: [] for leaf in ZOO}
    for leaf, metric, value, iterations in cells():
        expected[leaf].append(f'{metric} {value}')
        # Where the paper prints the number of updates, ours is the same.
        assert iterations in (None, updates[leaf])
    assert figures == {leaf: sorted(found) for leaf, found in expected.items()}


def test_metafiles_claim_no_results():
    """There are no Results and no Weights until a config is trained."""
    for _, metafile in metafiles():
        for model in metafile['Models']:
            assert not {'Results', 'Weights'} & set(model)
