"""The networks of diffusers' pipelines as their configurations describe them: tensors by name, work of a pass."""
