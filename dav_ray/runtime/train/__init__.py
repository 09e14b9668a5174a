"""The M-step on the cluster: ranks of Ray Train fit a round's trajectories and hand in the next policy.

    rounds.py ── committed chunks ──> TrainJob (job.py)
                                        │ round, groups: a dataset per rank (datasets.py), weights by trajectory
                                        ▼
                                      Mailbox (mailbox.py), an async actor on the driver's node
                                        ▲ polls: where it is; takes its share    │ newest policies
                                        │ rank 0: metrics, new policy            ▼
                                      ranks (rank.py)                            search workers
                                        │ rank 0 writes policy, optimizer
                                        ▼
                                      run directory

    Ranks (ranks.py) ── a thread with TorchTrainer.fit: starts, ends ──> ranks; events say what became of them

A rank dies or raises: Ray Train starts all of them again, they go on from the last policy; what can't go well another
time, or fails too often, ends the run (troubles.py). No policy in roles.train.call_timeout_s: their processes are ended
once. Rows that are lost with a node are read from their shards. Out of memory: all go on with half the micro-batch. The
mailbox dies: the run ends, and the same command goes on.
"""
