"""Which Rays are up on this machine, read off their processes: no Ray is imported for it, and none is asked."""

from __future__ import annotations

import os

import psutil

from dav_ray.errors import UserError

RAYLET = "raylet"  # the process that every node of every Ray has
FLAG = "--gcs-address="


def check_auto() -> None:
    """UserError naming their addresses where `auto` may mean several. Ray itself would take the one that was started
    last, and ask it for minutes if that does not know this user."""
    if os.environ.get("RAY_ADDRESS", "auto") not in ("", "auto"):
        return  # that is what Ray takes `auto` for
    found = running()
    if len(found) > 1:
        listed = ", ".join(found)
        raise UserError(
            f"--address auto: {len(found)} Rays are up on this machine ({listed}); allowed: one of them, "
            f"for instance --address {found[0]}"
        )


def running() -> list[str]:
    """HOST:PORT of each Ray that has a node on this machine, sorted."""
    here, found = _own_hosts(), {}
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == RAYLET:
            for word in process.info["cmdline"] or ():
                if word.startswith(FLAG):
                    address = word.removeprefix(FLAG)
                    host, _, port = address.rpartition(":")
                    found.setdefault(("" if host in here else host, port), address)
    return sorted(found.values())


def _own_hosts() -> set[str]:
    """The names under which one port of this machine may be known."""
    addresses = {address.address for held in psutil.net_if_addrs().values() for address in held}
    return addresses | {"localhost", "127.0.0.1", "::1"}
