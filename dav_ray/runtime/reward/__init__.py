"""The rewards of a run, each with replicas of its own, in an environment of its own if need be.

    search worker: FleetClient (replica.py)
        │ samples (large ones as a reference), conditions      ▲ scores; gradients as references
        ▼                                                      │
    Fleet (router.py), one async actor on the driver's node ───┘
        │ one request to each reward                           fleet.py: the driver's side; starts it, reads its events
        ▼
    Crew (replicas.py), per reward: Queue (batching.py): which requests go in one call; pure
        │                           Pool (scaling.py): which replicas there should be, who gets what; pure
        │                           Answers (answers.py): parts become whole, what is asked again
        ▼
    RewardActor (replica.py), a replica: first reproduces golden scores, then serves

A replica that dies, or gives no answer in roles.reward.call_timeout_s: its requests go to another one, a new one is
started. One that does not reproduce the golden scores is not used, and none takes its place. The Fleet: Ray starts it
again, its replicas end with it, clients ask once more. A reward that wants less memory, another process or another try
(rewards.faults) gets it. A reward that raises anything else, or gives NaN: the run ends; that is never a number.
"""
