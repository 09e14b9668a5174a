"""Model families: what a kind of model answers for itself, before torch is imported.

    base                what every family answers (`Family`)
    table               the families by `model.kind`, and the pipelines of diffusers by their class
    pipeline            what all pipelines of diffusers have in common; latents: those whose adapter takes the pipeline
    pipelines           one file for each class of pipelines
    masked              masked discrete diffusion over letters

A new family is one file with a subclass of `Family` (or of one that is there) and a line in `table`. A family of a
user's own needs no line: a recipe names its module or file, or a package registers it as an entry point of the group
`dav_ray.models`.
"""
