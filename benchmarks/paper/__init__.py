"""The paper's tables, and a figure of accuracy."""
