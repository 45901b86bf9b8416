import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read(name):
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.exists() else ''


def read_version():
    """The version without importing the package, which would need torch."""
    return re.search(r"__version__ = '(.+)'", read('agvm_mm/version.py')).group(1)


# The OpenMMLab packages are extras, never requirements: maintained forks ship
# the same modules under other names, and a requirement would install both.
# mmcv is in no extra. Its operators have to be compiled against the installed
# torch, which a plain `pip install` does not do: see tools/install.sh.
# setuptools: mmengine 0.10 imports pkg_resources, which release 82 dropped.
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
test = ['pytest', 'pytest-timeout', 'pytest-xdist', 'ruff', 'scipy']

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
    packages=find_packages(include=['agvm_mm', 'agvm_mm.*']),
    include_package_data=True,
    python_requires='>=3.10,<3.13',
    install_requires=['torch', 'numpy'],
    extras_require={
        'detection': detection,
        'segmentation': segmentation,
        'demo': demo,
        'baselines': baselines,
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
