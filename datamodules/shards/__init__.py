"""Shards: WebDataset tar files with an index beside each, read at random from a disk or through a
local cache."""
