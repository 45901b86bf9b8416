"""Shared code of the benchmarks: ranks, trainers, timing, memory, reports."""
