"""Data for pretraining: an order that is a pure function of (seed, epoch), transforms of samples,
and their probes."""
