"""Data for pretraining: an order that is a pure function of (seed, epoch), sources of samples, and their probes."""
