"""Measuring poisons: perturbation statistics."""
