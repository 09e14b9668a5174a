"""A template process: it imports torch and the model's libraries once, and Ray's workers on this machine are forked
from it, with these imports in memory that they share.

    driver ── starts ──> process.py: imports, then waits on a socket
    raylet ── starts ──> launcher.py (a worker's command) ── command, environment, output files ──> process.py
                                                          <── exit status ── forks the worker ──────────┘

A worker is told from a plain one by nothing but its start: Ray itself is imported in the fork, as its native part reads
the environment when it is loaded. Without the template process (it died, or never came up) the launcher starts a plain
worker. It ends with the driver. For runs on this machine alone, whose roles use no GPU and no environment of their own.
"""
