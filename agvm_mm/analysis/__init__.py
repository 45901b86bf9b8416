"""Analysis of runs: what tools and benchmarks share."""
