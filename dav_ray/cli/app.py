"""The command `dav-ray`.

Everything heavy is imported inside the command that needs it: `--help` and mistakes are quick.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from dav_ray import __version__
from dav_ray.cli.checks import COMMENT, announce, dry_run_text, require_model, require_run, show_imports
from dav_ray.cli.failures import exit_codes
from dav_ray.cli.lists import show_list
from dav_ray.cli.options import Address, Overrides, RecipeName, RunDir
from dav_ray.cli.pretrain import pretrain
from dav_ray.cli.recipes import config, init
from dav_ray.cli.try_reward import try_reward
from dav_ray.redact import printable

MOST_SAMPLES = 1_000_000

app = typer.Typer(
    name="dav-ray",
    help="Align a diffusion model with a reward, on a Ray cluster.",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """The entry point of the installed command."""
    show_imports()
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
    with exit_codes():
        from dav_ray.config.batches import too_few_chunks
        from dav_ray.config.checks.preflight import check, check_address, check_run_dir
        from dav_ray.config.plan import cores, crowded
        from dav_ray.config.recipe.load import load
        from dav_ray.runtime.initial_policy import with_version

        check_address(address, connect=not dry_run)
        loaded = load(recipe, overrides or [])
        announce(loaded.config, COMMENT if dry_run else "")
        with contextlib.redirect_stdout(sys.stderr):  # what code of the user's own prints is no part of a dry run
            check(loaded.config, address)
        place = f"runs/{loaded.name}" if run_dir is None else run_dir
        loaded = with_version(loaded, place)
        check_run_dir(place, loaded)
    if dry_run:
        typer.echo(dry_run_text(loaded, place))
        return
    if address == "local" and (line := crowded(loaded.config, cores())):
        typer.echo(line)
    if words := too_few_chunks(loaded.config):
        typer.echo(words)
    with exit_codes(place):
        from dav_ray.runtime import driver

        driver.run(loaded, place, address)


@app.command()
def report(run_dir: RunDir) -> None:
    """Write the run's HTML report and print its path."""
    with exit_codes(run_dir):
        require_run(run_dir)
        from dav_ray.report.page import write_report

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
    with exit_codes(run_dir):
        require_run(run_dir, address)
        require_model(run_dir, address)
        from dav_ray.runtime.evaluate_again import evaluate_run

        typer.echo("starting Ray and the search workers, which draw and measure: usually 20 s and the samples' time")

        evaluate_run(run_dir, samples, version, address)


@app.command()
def sample(
    run_dir: RunDir,
    num: Annotated[int, typer.Option(min=1, max=MOST_SAMPLES, help="How many samples.")],
    out: Annotated[str, typer.Option(metavar="PATH", help="A folder; sequences also FILE.fasta, FILE.fa or FILE.csv.")],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_ADDRESS",
            metavar="auto|local|HOST:PORT",
            help="local draws in this process, without Ray; else the Ray cluster that does.",
        ),
    ] = "local",
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Sample i uses seed + i. Default: evaluate.seed.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="In place of the run's prompts; may be repeated. Masked models: conditions."),
    ] = None,
    version: Annotated[
        str, typer.Option(metavar="last|best|N", help="Which policy; 0 is the pretrained one.")
    ] = "last",
    steps: Annotated[
        int | None, typer.Option(min=2, max=MOST_SAMPLES, help="Sampling steps. Default: search.steps.")
    ] = None,
    reward: Annotated[
        bool, typer.Option("--reward/--no-reward", help="With the columns of rewards and held-out measures.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over what is at PATH.")] = False,
) -> None:
    """Draw samples from the aligned model: images as PNGs, sequences as FASTA or CSV."""
    with exit_codes(run_dir):
        require_run(run_dir, address)
        from dav_ray.runtime.sample import Wanted, sample_run

        wanted = Wanted(num, out, seed, tuple(prompt or ()), version, steps, reward, force)
        sample_run(run_dir, wanted, address)


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
    with exit_codes():
        from dav_ray.config.checks.preflight import check_address
        from dav_ray.config.recipe.load import load

        check_address(address)
        loaded = load(recipe, overrides or []).config if recipe is not None else None
        from dav_ray.runtime.doctor.examine import doctor as examine
        from dav_ray.runtime.doctor.findings import render

        findings = list(examine(loaded, address, measure=measure))
    typer.echo(render(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


app.command(name="try-reward")(try_reward)
app.command()(init)
app.command()(config)
app.command()(pretrain)
app.command(name="list")(show_list)
