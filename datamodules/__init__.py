"""Data for pretraining: datasets, transforms of items to samples, and the order of a run."""
