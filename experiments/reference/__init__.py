"""The tensors of the authors' code."""
