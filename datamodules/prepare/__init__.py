"""Make shards of files: ``python -m datamodules.prepare COMMAND input=DIR output=DIR ...``."""
