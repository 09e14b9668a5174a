"""Ends a run before anything starts if a role could never be placed."""

from __future__ import annotations

import time
from dataclasses import replace

from dav_ray.config.schema import Config
from dav_ray.errors import UserError
from dav_ray.runtime.cluster.ray_private import is_embedded
from dav_ray.runtime.doctor.cluster import live, scalable
from dav_ray.runtime.doctor.fit import never
from dav_ray.runtime.interrupt import check

JOINING_S = 20.0  # nodes that were started together with the head may still be on their way
POLL_S = 1.0


def refuse_misfits(config: Config, *, train: bool = True, joining_s: float = JOINING_S) -> None:
    """UserError, a line per role, if the cluster neither has nor can start what a run can't do without. train: with
    its ranks.

    Costs a look at Ray's tables where everything fits what is up; a task on the head where it doesn't.
    """
    if not never(config, pool := live(), train=train):
        return
    known, deadline = scalable(pool), time.monotonic() + joining_s
    while lines := never(config, replace(known, nodes=pool.nodes), train=train):
        if known.scaling == "types" or is_embedded() or time.monotonic() > deadline:
            raise UserError([f"{line}; see dav-ray doctor" for line in lines])
        check()
        time.sleep(POLL_S)
        pool = live()
