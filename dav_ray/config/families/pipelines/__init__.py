"""The pipelines of diffusers, by their class: their parts, their layers for adapters, the adapter that runs them."""
