"""What a command says where it fails, and the exit code it ends with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from dav_ray.errors import RewardError, RunError, UserError
from dav_ray.redact import printable

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
        _show_trace(error)
        complain(f"{error.role}: {error.cause}{_further(error, run_dir.rstrip('/')) if run_dir else ''}")
        raise _leaving(1) from None
    except OSError as error:
        _show_trace(error)
        complain(f"storage: {type(error).__name__}: {error}")
        raise _leaving(1) from None
    except Exception as error:  # the last gate: a user sees a line, never a traceback
        from dav_ray.run_dir.tracebacks import innermost

        _show_trace(error)
        where = f"{innermost(error)}; {TRACEBACK}=1 shows the traceback"
        complain(f"unexpected: {type(error).__name__}: {error} ({where})")
        raise _leaving(1) from None


def complain(line: str) -> None:
    """One line on standard error, nothing secret in it."""
    typer.echo(f"dav-ray: {printable(' '.join(line.split()))}", err=True)


def _leaving(code: int) -> typer.Exit:
    """What ends the command; where a thread is still inside Ray, the process ends here and now."""
    from dav_ray.runtime.interrupt import entangled

    if entangled():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return typer.Exit(code)


def _show_trace(error: BaseException) -> None:
    """Where the user's own code failed, or all that is known where TRACEBACK asks for it."""
    from dav_ray.run_dir.tracebacks import shown

    for line in shown(error, whole=TRACEBACK in os.environ):
        typer.echo(line, err=True)


def _further(error: RunError, run_dir: str) -> str:
    """Where to look, and how to ask a reward again."""
    words = [f"log: {run_dir}/events.jsonl"]
    if isinstance(error, RewardError) and error.kept is not None:
        from dav_ray.run_dir.quarantine import again

        words.append(f"ask again: {again(f'{run_dir}/{error.kept}')}")
    return f" ({'; '.join(words)})"
