"""Shards: WebDataset tar files with an index beside each, so that samples are read in any order."""
