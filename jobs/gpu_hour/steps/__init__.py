"""One step of the hour in each file."""
