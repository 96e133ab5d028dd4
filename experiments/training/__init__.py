"""One run, and the directory that it leaves."""
