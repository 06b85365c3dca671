"""Folders of files as datasets, their labels, and what a dataset offers to a probe."""
