"""Ray as the other folders see it. Nothing here knows of searches, rewards or ranks.

    connect.py      from an address to a connection; an embedded Ray for `local` ── its notices ──> notices.py: ray.log
    placement.py    a role's section ──> options of actors and tasks; other_python/: this package in other environments
    device.py       which torch device Ray gave a process; peaks.py: what known GPUs can do at most
    deadlines.py    waits, limits that users set, how often to look
    nodes.py        where actors are; nodes that join or are lost ──> events
    draining.py     nodes that are to be taken away ──> which workers are to move
    failures.py     what Ray raised ──> whose fault it is, in words; ends a process on any node
    versions.py     of the libraries that results depend on
    ray_private.py  every private name of Ray, each with what happens without it

Where Ray's head does not answer, nodes.py and draining.py see nothing new and look again later; an actor that
is gone is healed by its owner in `search`, `reward` or `train`.
"""
