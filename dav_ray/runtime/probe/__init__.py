"""Batch sizes that are measured (batches: probed), once per run directory, before anything else is started.

    driver ──> settle.py ── a task with a search worker's resources, then one with a rank's ──> probing.py
                   ▲                                                             builds the model, │
                   └──── sizes, seconds and peak bytes of each ───────────── times it (measure.py) ┘

The sizes are written into config.yaml, so that a run that goes on has the same. A task that dies, or is not done in
time, ends the run with the role's name. rates.py: from such times to the time of a round, for the doctor.
"""
