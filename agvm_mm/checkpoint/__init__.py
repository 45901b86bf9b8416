"""Checkpoints: read safely, written whole, matched with the training that resumes."""

from agvm_mm.checkpoint.atomic import AtomicCheckpointHook

__all__ = ['AtomicCheckpointHook']
