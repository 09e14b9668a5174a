"""What is measured, a file per value of `--parts`."""
