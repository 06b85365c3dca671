"""Probes: classifiers on frozen features, to compare encoders."""
