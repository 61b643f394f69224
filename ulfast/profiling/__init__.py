"""Measuring and checking kernels: the contestants, the machine, and the distance to its roofline."""
