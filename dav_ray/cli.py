"""The command `dav-ray`.

Everything heavy is imported inside the command that needs it: `--help` and mistakes are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from dav_ray import __version__
from dav_ray.cli_try_reward import try_reward
from dav_ray.errors import RewardError, RunError, UserError
from dav_ray.secrets import hide, printable

if TYPE_CHECKING:
    from dav_ray.config import Config
    from dav_ray.recipe import Recipe

MOST_SAMPLES = 1_000_000
TRACEBACK = "DAV_RAY_TRACEBACK"  # set to see where an unexpected error came from

app = typer.Typer(
    name="dav-ray",
    help="Align a diffusion model with a reward, on a Ray cluster.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe such as digits.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that differ from the recipe's."),
]
RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run directory: a path, s3:// or gs://.")]
Address = Annotated[
    str,
    typer.Option(envvar="RAY_ADDRESS", metavar="auto|local|HOST:PORT", help="The Ray cluster; local starts one here."),
]


def main() -> None:
    """The entry point of the installed command."""
    app(prog_name="dav-ray")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Path, s3:// or gs://. Default: runs/RECIPE.")
    ] = None,
    address: Address = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole configuration and the plan, start nothing.")
    ] = False,
) -> None:
    """Align a model. The same command on the same run directory continues where it stopped."""
    with _exit_codes():
        from dav_ray.initial import with_version
        from dav_ray.preflight import check, check_address, check_run_dir
        from dav_ray.recipe import load

        check_address(address, connect=not dry_run)
        loaded = load(recipe, overrides or [])
        _announce(loaded.config)
        check(loaded.config, address)
        place = f"runs/{loaded.name}" if run_dir is None else run_dir
        loaded = with_version(loaded, place)
        check_run_dir(place, loaded)
    if dry_run:
        typer.echo(_dry_run(loaded, place))
        return
    with _exit_codes(place):
        from dav_ray import driver

        driver.run(loaded, place, address)


@app.command()
def report(run_dir: RunDir) -> None:
    """Write the run's HTML report and print its path."""
    with _exit_codes(run_dir):
        _require_run(run_dir)
        from dav_ray.report import write_report

        typer.echo(printable(write_report(run_dir)))


@app.command()
def evaluate(
    run_dir: RunDir,
    samples: Annotated[
        int | None, typer.Option(min=1, max=MOST_SAMPLES, help="Fresh samples. Default: evaluate.samples.")
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="best|last|N", help="Which policy. 0: what the run started from.")
    ] = "last",
    address: Address = "local",
) -> None:
    """Measure a policy again on fresh samples without search, beside round 0; written into the run's evaluate/."""
    with _exit_codes(run_dir):
        _require_run(run_dir, address)
        _require_model(run_dir, address)
        from dav_ray.evaluate_again import evaluate_run

        evaluate_run(run_dir, samples, version, address)


@app.command()
def sample(
    run_dir: RunDir,
    num: Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="How many samples.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="A folder; sequences also FILE.fasta, FILE.fa or FILE.csv.")],
    address: Address = "local",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Sample i uses seed + i. Default: evaluate.seed.")
    ] = None,
) -> None:
    """Draw samples from the aligned model: images as PNGs, sequences as FASTA or CSV."""
    with _exit_codes(run_dir):
        _require_run(run_dir, address)
        _require_model(run_dir, address)
        from dav_ray.sample import sample_run

        sample_run(run_dir, num, out, seed, address)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="What should fit.")] = None,
    overrides: Overrides = None,
    address: Address = "local",
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the recipe's model on a node of the search.")
    ] = False,
) -> None:
    """Show what the cluster has or could start, and what the recipe needs. Exit code 1 if it does not fit."""
    with _exit_codes():
        from dav_ray.preflight import check_address
        from dav_ray.recipe import load

        check_address(address)
        loaded = load(recipe, overrides or []).config if recipe is not None else None
        from dav_ray.doctor.examine import doctor as examine
        from dav_ray.doctor.findings import render

        findings = list(examine(loaded, address, measure=measure))
    typer.echo(render(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


app.command(name="try-reward")(try_reward)


@app.command()
def config() -> None:
    """Print every configuration key: default, what is allowed, meaning."""
    from dav_ray.keys import describe

    typer.echo(describe())


@contextmanager
def _exit_codes(run_dir: str | None = None) -> Iterator[None]:
    """Errors as lines and exit codes: 2 user's mistake, 1 failed run. The driver decides 130 and 143."""
    try:
        yield
    except UserError as error:
        for line in error.lines:
            _complain(line)
        raise _leaving(2) from None
    except RunError as error:
        _show_trace(error)
        _complain(f"{error.role}: {error.cause}{_further(error, run_dir) if run_dir else ''}")
        raise _leaving(1) from None
    except OSError as error:
        _show_trace(error)
        _complain(f"storage: {type(error).__name__}: {error}")
        raise _leaving(1) from None
    except Exception as error:  # the last gate: a user sees a line, never a traceback
        from dav_ray.tracebacks import innermost

        _show_trace(error)
        _complain(
            f"unexpected: {type(error).__name__}: {error} ({innermost(error)}; {TRACEBACK}=1 shows the traceback)"
        )
        raise _leaving(1) from None


def _leaving(code: int) -> typer.Exit:
    """What ends the command; where a thread is still inside Ray, the process ends here and now."""
    from dav_ray.interrupt import entangled

    if entangled():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return typer.Exit(code)


def _complain(line: str) -> None:
    typer.echo(f"dav-ray: {printable(' '.join(line.split()))}", err=True)


def _show_trace(error: BaseException) -> None:
    """Where the user's own code failed, or all that is known where TRACEBACK asks for it."""
    from dav_ray.tracebacks import shown

    for line in shown(error, whole=TRACEBACK in os.environ):
        typer.echo(line, err=True)


def _further(error: RunError, run_dir: str) -> str:
    """Where to look, and how to ask a reward again."""
    words = [f"log: {_join(run_dir, 'events.jsonl')}"]
    if isinstance(error, RewardError) and error.kept is not None:
        from dav_ray.quarantine import again

        words.append(f"ask again: {again(_join(run_dir, error.kept))}")
    return f" ({'; '.join(words)})"


def _announce(config: Config) -> None:
    """Say which code of the user's own will be imported, before any of it is."""
    from dav_ray.own_code import announced

    for line in announced(config):
        typer.echo(printable(line))


def _require_run(run_dir: str, address: str = "local") -> None:
    """Raises UserError if this is no run directory, or the address can't be used."""
    from dav_ray.keys import PATH, show
    from dav_ray.preflight import check_address, read_run_file

    check_address(address)
    if "://" not in run_dir and (not run_dir.strip() or "\0" in run_dir):
        raise UserError(f"{run_dir!r}: is no path; allowed: the --run-dir of a `dav-ray run`")
    if read_run_file(run_dir, "config.yaml") is None:
        missing = "://" not in run_dir and not os.path.exists(os.path.expanduser(run_dir))
        why = "no such directory" if missing else "is no run directory (it has no config.yaml)"
        raise UserError(f"{show(run_dir, PATH)}: {why}; allowed: the --run-dir of a `dav-ray run`")


def _require_model(run_dir: str, address: str) -> None:
    """Raises UserError if the run's model, rewards or last policy are not there any more; says which code of the user's
    own its config.yaml names."""
    from dav_ray.model_folder import check_there
    from dav_ray.preflight import check
    from dav_ray.run_files import read_run

    stored = read_run(run_dir)
    check_there(stored.config.model.path, f"{run_dir}/config.yaml")
    _announce(stored.config)
    check(stored.config, address, tracked=False)
    folder = f"policy/v{stored.manifest.policy_version:04d}"
    if stored.manifest.policy_version and not stored.storage.list(folder):
        raise UserError(f"{run_dir}: {folder} is absent, the run's last policy; allowed: a run directory that is whole")


def _dry_run(recipe: Recipe, run_dir: str) -> str:
    from dav_ray.plan import plan, render

    place = run_dir if "://" in run_dir else os.path.abspath(os.path.expanduser(run_dir))
    numbers = hide(render(recipe.config, plan(recipe.config)))
    return f"{recipe.yaml}\nrun directory: {printable(place)}\n{numbers}\nnothing was started"


def _join(run_dir: str, name: str) -> str:
    return f"{run_dir.rstrip('/')}/{name}"
