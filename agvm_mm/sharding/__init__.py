"""Training whose parameters or optimizer states are divided over the ranks."""
