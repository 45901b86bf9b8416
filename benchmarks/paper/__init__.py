"""The paper's tables and figures of accuracy."""
