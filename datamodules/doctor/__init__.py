"""Check a dataset before a run: decode every item, and simulate the order of the run."""
