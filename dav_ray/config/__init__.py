"""The configuration: what a user types, what it means, whether it can work. No torch and no Ray at import."""

from dav_ray.moved import names_of

__getattr__ = names_of("config")
