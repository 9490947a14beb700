"""Models and settings, each trained with several seeds, in one table."""
