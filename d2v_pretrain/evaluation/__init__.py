"""Frozen features, classifiers on them, and the probe that compares encoders by both."""
