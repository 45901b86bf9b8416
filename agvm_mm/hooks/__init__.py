"""Hooks of MMEngine's runner."""

from agvm_mm.hooks.preemption import PreemptionHook
from agvm_mm.hooks.variance_sync import VarianceSyncHook

__all__ = ['PreemptionHook', 'VarianceSyncHook']
