"""A template process: it imports torch and the model's libraries once, and Ray's workers on this machine are forked
from it, with these imports in memory that they share.

    driver ── starts ──> process.py: imports, then waits on a socket
    raylet ── starts ──> launcher.py (a worker's command) ── command, environment, output files ──> process.py
                                                          <── exit status ── forks the worker ──────────┘

A worker differs from a plain one in its start alone: Ray itself is imported in the fork, as its native part reads the
environment when it is loaded. The template process dies, or never came up: the launcher starts a plain worker. A worker
dies: its launcher ends with its exit status, so that the raylet sees it. A launcher is killed: so is its worker. The
driver dies: the template process ends. For runs on this machine alone, whose roles use no GPU and no environment of
their own; start.py decides.
"""
