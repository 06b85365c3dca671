"""Notebooks, and the pictures that they share with the README."""
