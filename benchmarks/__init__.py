"""Measurements and comparisons that anyone can repeat."""
