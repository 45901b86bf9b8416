"""Analysis of runs: logs, the paper's tables, plans and figures."""
