"""Composing a configuration, its rules, and the words that are typed on a command line."""
