"""What to measure in the first hour on a GPU."""
