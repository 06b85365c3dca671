"""Weights from files: our bundles, fairseq and BEiT, their parameter names beside ours."""
