"""Check of a machine with GPUs: ``python -m gpu_check``.

Its pieces run on CPU ranks, too, where the tests run them.
"""
