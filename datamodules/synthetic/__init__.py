"""Data that are computed, or shipped with Python: the same on every machine, without a download."""
