"""Raw files to shards: ``python -m datamodules.prepare audio|vision|text|index|verify input=DIR
output=DIR …``."""
