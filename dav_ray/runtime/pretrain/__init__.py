"""`dav-ray pretrain`: a masked diffusion model from sequences, on Ray Train; no run directory, no search.

    job.py ── options.py: sequences, settings ──> TorchTrainer.fit, in a thread
       ▲                                              │ a Ray dataset of all rows
       │ reads the curve, prints it                   ▼
       │                                          workers: loop.py, each takes its rows of every batch
       └──── folder: metrics, checkpoint, model <─────┘ rank 0 writes

A worker dies: Ray Train starts all of them again, from the folder's checkpoint. The driver dies: the same command goes
on from there.
"""
