"""Packed weight layouts with their matmuls, and every other operation of the plan.

Kernels are private and trusting: they take addresses and sizes that `qllama.plan` has checked. Only `layouts.py` may be
imported without Numba; the rest is loaded by `qllama.jit` when something has to be compiled.
"""
