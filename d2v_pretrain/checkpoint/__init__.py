"""Checkpoint files, how Lightning writes them, and a run on disk."""
