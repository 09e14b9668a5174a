"""The E-step on the cluster: chunks of trajectories are searched, and fresh samples are drawn for evaluations.

    rounds.py ── chunks ──> Dispatcher (dispatch.py) ── asks who does what next ──> Schedule (schedule.py), pure
                               │        ▲            └─ what is in flight ──> Calls (calls.py), pure
           chunk, policy's     │        │ Reply: scores, process, events (process.py)
           version             ▼        │ table: its reference; rows stay in the object store
                            search worker (worker.py), an actor per model ── samples ──> reward/
                               │        ▲   one chunk is computed (one_at_a_time.py) while another one is stored
           writes a shard      │        │ policy: of the mailbox, else of the run directory
           (chunk_shard.py)    │        │
                               ▼        │ last round's samples (starts.py), for a warm start
                            run directory

    SearchTeam (workers.py) ── starts, pings, restarts, releases ──> search workers

A chunk counts once the manifest names its shard. Where several workers did one, the first result counts.
A worker that dies, or gives no answer in roles.search.call_timeout_s: its chunk is handed out again, Ray starts another
process. One whose constructor raises: another actor takes its place, up to six times. One that Ray or the kernel ended
for want of memory: it is given half as many states at once. A node that drains: its worker ends its chunk and moves.
Rewards, code or data that raise: the run ends, and the evidence is kept.
"""
