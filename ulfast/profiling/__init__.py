"""Measuring and checking kernels: what races what, on which machine, how near to its roof."""
