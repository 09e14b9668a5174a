"""`report.html`: what a run did, on one self-contained page; and the table on the terminal."""

from dav_ray.moved import names_of

__getattr__ = names_of("report")
