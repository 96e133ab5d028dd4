"""Programs around the library: everything that reads flags, files or data sets."""
