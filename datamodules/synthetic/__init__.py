"""Data made on the spot or shipped with Python, the same on every machine."""
