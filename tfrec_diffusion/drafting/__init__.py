"""A first spec file of own logs, from what a directory of raw files holds."""
