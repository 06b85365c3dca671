"""Make shards of files: ``python -m datamodules.prepare audio|vision|text|index|verify input=DIR
output=DIR ...``."""
