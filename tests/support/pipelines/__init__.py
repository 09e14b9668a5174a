"""The pipelines of diffusers that have a family, with tiny random weights: one file each."""
