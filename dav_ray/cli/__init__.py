"""The command `dav-ray`: arguments, and what it says where something fails."""

from dav_ray.moved import names_of

__getattr__ = names_of("cli")
