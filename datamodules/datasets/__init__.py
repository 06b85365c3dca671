"""Datasets: their base class, folders of files, labels, and what a dataset offers to a probe."""
