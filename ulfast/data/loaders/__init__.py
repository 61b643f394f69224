"""Loaders: batches for training, projected, augmented and normalised on the way."""
