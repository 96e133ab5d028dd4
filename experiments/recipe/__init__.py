"""A config becomes an :class:`~experiments.recipe.experiment.Experiment`."""
