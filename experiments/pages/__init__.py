"""What is said of runs and networks."""
