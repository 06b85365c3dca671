"""From a configuration to a trained run: the runner, the Lightning module, its callbacks, ranks and
signals."""
