"""Hyper-parameters: a search over flags of `train` and constructor arguments, trial by trial."""
