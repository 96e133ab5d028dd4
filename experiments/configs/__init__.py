"""Recipes: each file has a ``get_config(mode)``; ``mode`` is empty, or ``smoke`` for a run of seconds."""
