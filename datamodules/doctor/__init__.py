"""What is in a data set before a run meets it: every item decoded, the order of the run
simulated."""
