"""Optimizer wrappers and their constructor."""

from agvm_mm.optim.agvm_wrapper import AGVMAmpOptimWrapper, AGVMOptimWrapper
from agvm_mm.optim.constructor import AGVMOptimWrapperConstructor

__all__ = ['AGVMAmpOptimWrapper', 'AGVMOptimWrapper', 'AGVMOptimWrapperConstructor']
