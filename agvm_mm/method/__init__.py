"""The method: plain arithmetic on tensors, and the modules of a network."""
