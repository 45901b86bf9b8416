"""Shared code of the benchmarks: memory, reports, trainings to a fixed loss."""
