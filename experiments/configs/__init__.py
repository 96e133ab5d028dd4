"""Configs: what to train, how, and what was seen when it was."""
