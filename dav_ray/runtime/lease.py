"""One driver per run directory: `lease.json` says who goes on there, and is renewed while it does.

A second driver is refused. It compares no clocks: a holder on its own machine is alive or dead; of any other it watches
whether the lease changes for LEASE_S seconds of its own monotonic clock. The lease spares two drivers the work that
one of them would lose. That nothing is harmed rests on the manifest's epoch alone, with or without a lease.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dav_ray.errors import DavRayError, RunError, UserError
from dav_ray.run_dir.storage.interface import AlreadyExists, Conflict, Storage, Version
from dav_ray.runtime.interrupt import check, demand, forget, interrupted
from dav_ray.strict import parse_object

LEASE = "lease.json"
LEASE_S = 15.0
POLL_S = 0.5
RELEASE_S = 10.0  # longest wait for a store that is away, before the process ends
RELEASE_INTERRUPTED_S = 0.5  # a job that is stopped has 3 s in all


class LeaseTaken(RunError):
    """Another driver has taken this run over while this one did not renew its lease."""


@dataclass(frozen=True)
class Holder:
    """A driver's process."""

    host: str
    machine: str  # this boot of the kernel and this space of pids; empty where none is known
    pid: int
    started: int  # clock ticks from boot to the process' start, since pids come again
    id: str  # of this hold on the lease

    @classmethod
    def here(cls, machine: str | None = None) -> Holder:
        """This process; machine: as if it ran there."""
        pid, machine = os.getpid(), _machine() if machine is None else machine
        return cls(socket.gethostname(), machine, pid, _start(pid) if machine else 0, uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}" if self.pid else self.host


@dataclass(frozen=True)
class Lease:
    """What `lease.json` holds. Free if there is no holder."""

    holder: Holder | None
    counter: int = 0  # of renewals: another driver that watches sees it change

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), sort_keys=True, indent=1) + "\n").encode()

    @staticmethod
    def from_json(data: bytes) -> Lease:
        """Of a damaged lease nobody knows the holder: he is waited for."""
        try:
            fields = parse_object(data)
            holder, counter = fields["holder"], int(fields["counter"])
            if holder is None:
                return Lease(None, counter)
            host, machine, id = (str(holder[name]) for name in ("host", "machine", "id"))
            return Lease(Holder(host, machine, int(holder["pid"]), int(holder["started"]), id), counter)
        except (ValueError, TypeError, KeyError, OverflowError):
            return Lease(Holder("a machine unknown", "", 0, 0, ""))


@dataclass
class Watch:
    """A second driver's view of the lease of a run directory. now: seconds of any clock that does not go back."""

    place: str
    here: Holder
    alive: Callable[[Holder], bool]
    _seen: bytes | None = None
    _since: float = field(default=0.0)

    def may_take(self, stored: bytes, now: float) -> bool:
        """Whether the lease is free, or its holder gone. UserError if he is there."""
        lease = Lease.from_json(stored)
        if lease.holder is None or lease.holder.id == self.here.id:
            return True
        if lease.holder.machine and lease.holder.machine == self.here.machine:
            if self.alive(lease.holder):
                raise _refused(self.place, lease.holder)
            return True
        if self._seen is None:
            self._seen, self._since = stored, now
        if stored != self._seen:
            raise _refused(self.place, lease.holder)
        return now - self._since >= LEASE_S


def take(
    storage: Storage,
    here: Holder,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Lease, Version]:
    """Get hold of the lease, if need be after LEASE_S. UserError if another driver has it and goes on."""
    mine, watch, said = Lease(here), Watch(storage.uri, here, alive), False
    while True:
        try:
            return mine, storage.create(LEASE, mine.to_json())
        except AlreadyExists:
            pass
        try:
            stored, version = storage.read_versioned(LEASE)
            if watch.may_take(stored, clock()):
                return mine, storage.replace(LEASE, mine.to_json(), version)
        except (FileNotFoundError, Conflict):
            continue  # someone was faster: what does the lease say now?
        if not said:
            holder, said = Lease.from_json(stored).holder, True
            say(f"waiting {LEASE_S:.0f} s for the lease of {holder}, which may be gone")
        sleep(POLL_S)


@contextmanager
def held(storage: Storage, say: Callable[[str], None], here: Holder | None = None) -> Iterator[None]:
    """Hold the lease, renewed by a thread. UserError as in `take`; in the context, waits raise LeaseTaken once it is
    another's."""
    here = here or Holder.here()
    keeper = Keeper(storage, *take(storage, here, say))
    thread, end = threading.Thread(target=keeper.run, name="lease", daemon=True), keeper.end
    thread.start()
    try:
        yield
        check()
    finally:
        end.set()
        thread.join(RELEASE_INTERRUPTED_S if interrupted() else RELEASE_S)
        forget()


class Keeper:
    """Renews a lease until `end` is set, then frees it. It alone writes the lease, so it knows what is stored."""

    def __init__(self, storage: Storage, lease: Lease, version: Version) -> None:
        self._storage, self._lease, self._version = storage, lease, version
        self.end = threading.Event()

    def run(self) -> None:
        while not self.end.wait(LEASE_S / 3):
            try:
                self.renew()
            except LeaseTaken as taken:
                demand(taken)
                return
            except (DavRayError, OSError):
                continue  # the store is away: the next renewal may find it
        try:
            self._write(Lease(None, self._lease.counter + 1))
        except (DavRayError, OSError):
            return  # it expires

    def renew(self) -> None:
        """Raises LeaseTaken if it is another's by now."""
        self._write(replace(self._lease, counter=self._lease.counter + 1))

    def _write(self, lease: Lease) -> None:
        while True:
            try:
                self._version = self._storage.replace(LEASE, lease.to_json(), self._version)
                self._lease = lease
                return
            except Conflict:
                self._look()

    def _look(self) -> None:
        """Learn what is stored: our own write whose answer was lost, or nothing, which is mended; else LeaseTaken."""
        try:
            stored, self._version = self._storage.read_versioned(LEASE)
        except FileNotFoundError:
            self._version = self._storage.create(LEASE, self._lease.to_json())
            return
        found, mine = Lease.from_json(stored).holder, self._lease.holder
        if found is None or mine is None or found.id != mine.id:
            raise LeaseTaken("driver", f"another driver ({found}) has taken over this run")


def alive(holder: Holder) -> bool:
    """Whether a process of this machine still runs."""
    hidden = False
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's, of which the kernel may tell nothing more
        hidden = True
    try:
        return _start(holder.pid) == holder.started
    except FileNotFoundError:
        return hidden


def _refused(place: str, holder: Holder) -> UserError:
    return UserError(
        f"--run-dir {place}: the run goes on there under another driver ({holder}), which holds {LEASE}; "
        "allowed: another directory, or this one after that driver's end"
    )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start(pid: int) -> int:
    """FileNotFoundError if there is no such process, or only what its parent has not asked about yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError as error:
        raise FileNotFoundError(pid) from error
    if fields[0] in "ZX":
        raise FileNotFoundError(pid)
    return int(fields[19])
