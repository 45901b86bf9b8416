"""Check of a machine with GPUs: ``python -m agvm_mm.doctor --gpu``.

Its pieces run on CPU ranks, too, where the tests run them.
"""
