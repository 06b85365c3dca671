"""Weights in files: our bundles, checkpoints of fairseq and BEiT, and their parameter names."""
