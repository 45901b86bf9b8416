import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# mim looks for these files in agvm_mm/.mim of an installed package. tools/dev needs the
# repository and is left out.
MIM_FILES = (
    'model-index.yml',
    'configs/**/*.py',
    'configs/**/*.yml',
    'configs/**/*.json',
    'configs/**/*.md',
    'tools/analysis/*.py',
    'tools/dist_*.sh',
    'tools/slurm*.sh',
    'tools/torchrun.*',
    'tools/noise_scale.py',
    'tools/plan.py',
    'tools/rendezvous.py',
    'tools/test.py',
    'tools/train.py',
)


def read(name):
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.exists() else ''


def read_version():
    """Return the version without importing the package, which would need torch."""
    return re.search(r"__version__ = '(.+)'", read('agvm_mm/version.py')).group(1)


class BuildWithMim(build_py):
    """Build step that copies configs and tools into agvm_mm/.mim."""

    def run(self):
        """Build and copy; an editable installation uses the repository instead."""
        super().run()
        if self.editable_mode:
            return
        # An earlier build may have left files that no longer exist.
        shutil.rmtree(Path(self.build_lib, 'agvm_mm', '.mim'), ignore_errors=True)
        for source, target in self.mim_files():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    def mim_files(self):
        """Return pairs of a file of the repository and its copy in the build."""
        root = ROOT.resolve()
        folder = Path(self.build_lib, 'agvm_mm', '.mim')
        sources = [path for name in MIM_FILES for path in sorted(root.glob(name))]
        return [(path, folder / path.relative_to(root)) for path in sources]

    def get_outputs(self, include_bytecode=True):
        """Return the built files, for installers that record them."""
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return [*outputs, *(str(target) for _, target in self.mim_files())]


# The OpenMMLab packages are extras, never requirements: maintained forks ship the same
# modules under other names, and a requirement would install both. mmcv is in no extra.
# Its operators must be compiled against the installed torch, which a plain
# `pip install` does not do: see tools/dev/install.sh. mmengine 0.10 imports
# pkg_resources, which setuptools 82 dropped.
mmengine = ['mmengine>=0.10.0,<1.0.0', 'setuptools<82']
detection = [*mmengine, 'mmdet>=3.3.0,<4.0.0']
segmentation = [*mmengine, 'mmsegmentation>=1.2.2,<2.0.0', 'ftfy', 'regex']
demo = [
    *detection,
    'matplotlib',
    'opencv-python',
    'pycocotools',
    'scikit-learn',
    'tensorboard',
    'tqdm',
]
baselines = ['pytorch-optimizer>=4,<5']
docs = ['mkdocs<2', 'mkdocs-material', 'mkdocstrings[python]']
test = [*docs, 'pytest', 'pytest-timeout', 'pytest-xdist', 'ruff', 'scipy']

setup(
    name='agvm_mm',
    version=read_version(),
    description=(
        'Adaptive gradient variance modulation: large-batch training for '
        'MMDetection and MMSegmentation'
    ),
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    author='The agvm_mm authors',
    license='Apache-2.0',
    # An editable installation has all folders of the repository on its path.
    package_dir={'': '.'},
    packages=find_packages(include=['agvm_mm', 'agvm_mm.*']),
    include_package_data=True,
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10,<3.13',
    install_requires=['torch', 'numpy'],
    extras_require={
        'detection': detection,
        'segmentation': segmentation,
        'demo': demo,
        'baselines': baselines,
        'docs': docs,
        'test': test,
        'all': sorted({*detection, *segmentation, *demo, *baselines, *test}),
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    zip_safe=False,
)
