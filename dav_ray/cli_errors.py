"""What a command says where it fails, and the exit code it ends with."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from dav_ray.errors import RunError, UserError
from dav_ray.secrets import printable

TRACEBACK = "DAV_RAY_TRACEBACK"  # set to see where an unexpected error came from


@contextmanager
def exit_codes(run_dir: str | None = None) -> Iterator[None]:
    """Errors as lines and exit codes: 2 user's mistake, 1 failed run. The driver decides 130 and 143."""
    try:
        yield
    except UserError as error:
        for line in error.lines:
            complain(line)
        raise _leaving(2) from None
    except RunError as error:
        log = f" (log: {run_dir.rstrip('/')}/events.jsonl)" if run_dir else ""
        complain(f"{error.role}: {error.cause}{log}")
        raise _leaving(1) from None
    except OSError as error:
        complain(f"storage: {type(error).__name__}: {error}")
        raise _leaving(1) from None
    except Exception as error:  # the last gate: a user sees a line, never a traceback
        if TRACEBACK in os.environ:
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        complain(f"unexpected: {type(error).__name__}: {error} ({place}; {TRACEBACK}=1 shows the traceback)")
        raise _leaving(1) from None


def complain(line: str) -> None:
    """One line on standard error, nothing secret in it."""
    typer.echo(f"dav-ray: {printable(' '.join(line.split()))}", err=True)


def _leaving(code: int) -> typer.Exit:
    """What ends the command; where a thread is still inside Ray, the process ends here and now."""
    from dav_ray.interrupt import entangled

    if entangled():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return typer.Exit(code)
