"""Public datasets by name: LibriSpeech, CIFAR-10, WikiText and others."""
