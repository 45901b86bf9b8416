"""Optimizer wrappers."""

from agvm_mm.optim.wrapper import AGVMAmpOptimWrapper, AGVMOptimWrapper

__all__ = ['AGVMAmpOptimWrapper', 'AGVMOptimWrapper']
