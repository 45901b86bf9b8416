"""AGVM: large-batch training of detectors and segmenters on MMEngine.

Importing this package registers its classes with MMEngine. A config imports it with
``custom_imports = dict(imports=['agvm_mm'])``.
"""

from agvm_mm.compat import check_versions, find_configs_of_forks
from agvm_mm.version import __version__

check_versions()
find_configs_of_forks()

from agvm_mm.optim import (  # noqa: E402
    AGVMAmpOptimWrapper,
    AGVMOptimWrapper,
    baselines,  # noqa: F401
)
from agvm_mm.sharding.model import FullyShardedModel  # noqa: E402
from agvm_mm.training.atomic import AtomicCheckpointHook  # noqa: E402
from agvm_mm.training.loading import allow_runner_checkpoints  # noqa: E402
from agvm_mm.training.loops import (  # noqa: E402
    LargeBatchIterTrainLoop,
    LargeBatchTrainLoop,
)
from agvm_mm.training.preemption import PreemptionHook  # noqa: E402
from agvm_mm.training.variance_sync import VarianceSyncHook  # noqa: E402
from agvm_mm.training.warmup import ExponentialWarmupLR  # noqa: E402

# Functions for inference load checkpoints by torch.load as it is.
allow_runner_checkpoints()

__all__ = [
    'AGVMAmpOptimWrapper',
    'AGVMOptimWrapper',
    'AtomicCheckpointHook',
    'ExponentialWarmupLR',
    'FullyShardedModel',
    'LargeBatchIterTrainLoop',
    'LargeBatchTrainLoop',
    'PreemptionHook',
    'VarianceSyncHook',
    '__version__',
]
