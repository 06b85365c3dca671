"""The encoder: stems, positions, attention biases, blocks."""
