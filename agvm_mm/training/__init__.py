"""Loops, hooks, schedules and checkpoints of a training."""
