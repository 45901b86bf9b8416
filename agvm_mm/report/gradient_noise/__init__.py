"""Gradient noise of a checkpoint: measured on many replicas, with intervals."""
