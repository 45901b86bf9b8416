"""Optimizer wrappers and their constructor."""

from agvm_mm.optim.constructor import AGVMOptimWrapperConstructor
from agvm_mm.optim.wrapper import AGVMAmpOptimWrapper, AGVMOptimWrapper

__all__ = ['AGVMAmpOptimWrapper', 'AGVMOptimWrapper', 'AGVMOptimWrapperConstructor']
