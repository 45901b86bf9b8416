"""Hooks of MMEngine's runner."""

from agvm_mm.hooks.checkpoint import AtomicCheckpointHook
from agvm_mm.hooks.variance_sync import VarianceSyncHook

__all__ = ['AtomicCheckpointHook', 'VarianceSyncHook']
