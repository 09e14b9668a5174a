"""A run on Ray. The driver schedules, commits and waits; models are in the search workers and the ranks alone.

    driver.py ── opens the run, holds lease.py ──> rounds.py: search, fit, evaluate; one round after the other
        │                                              │
        │ starts, ends (session.py)                    │ what is to be done
        ▼                                              ▼
    search/   Dispatcher ── chunks ──> search workers ── samples ──> reward/  router ──> replicas
                   ▲                        │      <── scores ──────────
                   │ scores of a chunk,     │ writes
                   │ reference to its rows  ▼
                   │                   run directory: shards; accepted once the manifest names them
                   ▼                        ▲ reads where rows are lost
    train/    TrainJob ── rows, weights ──> mailbox <── polls ── ranks (Ray Train) ── policy ──> run directory
                                               └── new policy ──> search workers

    doctor/ refuses a run that will never fit    probe/ measures batch sizes     watch/ tells users how it goes
    cluster/ is all that knows Ray's ways        template/ starts workers fast   pretrain/ makes a model, without a run

What dies: a search worker or a replica: its work goes to another one. A rank: Ray Train starts all ranks again, from
the last policy. A node: the same for all that was on it; rows that were there are read from their shards. The router:
Ray starts it again. The mailbox, the driver or the cluster's head: the run ends, and the same command goes on from the
manifest. Nothing that is accepted is searched again.
"""
