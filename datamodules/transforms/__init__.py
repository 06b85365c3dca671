"""From an item of a dataset to what the encoder takes: crops, augmentation, tokens."""
