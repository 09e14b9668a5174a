"""What a cluster has or could start, and whether a recipe fits: `dav-ray doctor`, and each run before it starts.

    examine.py (the command)        refusal.py (a run)
        │                               │
        ├── look ── cluster.py ◀────────┤    live nodes (ray.nodes), and what may be started: autoscaler.py, on the head
        │             └──> Pool (pool.py)
        ├── fit.py <────────────────────┘    each role alone, then all together (packing.py); pure
        ├── probes.py ── a task per node ──> versions.py: what is installed there
        │             └─ an actor per environment of a role: does it start?
        └── estimates.py, memory.py, weights.py: bytes and seconds   ──> Findings (findings.py), a line each

Nothing here outlives the command. A node that gives no answer is a finding. Where nobody can say what may be started, a
run is not refused.
"""
