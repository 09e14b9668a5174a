"""The command `dav-ray try-reward`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

MOST = 10_000


Target = Annotated[
    str | None,
    typer.Argument(metavar="REWARD|RECIPE", help="module.path:Name, path/to/file.py:Name, a built-in, or a recipe."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that differ from the recipe's.")
]
Arguments = Annotated[list[str] | None, typer.Option("--arg", metavar="NAME=VALUE", help="An argument of the reward.")]
Gradient = Annotated[bool, typer.Option("--gradient", help="It is to have a gradient: check that.")]
ModelRecipe = Annotated[str | None, typer.Option(metavar="RECIPE", help="Draw the samples from this recipe's model.")]
Tokens = Annotated[str | None, typer.Option(metavar="ALPHABET:LENGTH", help="Make up sequences, e.g. dna:200.")]
Num = Annotated[int, typer.Option(min=1, max=MOST, help="How many samples.")]
Device = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where model and reward compute.")]
Again = Annotated[
    str | None, typer.Option(metavar="FILE", help="Ask a run's rewards again about samples of its quarantine.")
]


def try_reward(
    target: Target = None,
    overrides: Overrides = None,
    arg: Arguments = None,
    gradient: Gradient = False,
    model: ModelRecipe = None,
    tokens: Tokens = None,
    num: Num = 8,
    device: Device = "cpu",
    again: Again = None,
) -> None:
    """Try a reward on a few samples in this process: values, time, and whether it keeps the contract of rewards.

    Exit code 1 if it does not.
    """
    from dav_ray.cli.failures import exit_codes
    from dav_ray.redact import printable

    kept = True
    with exit_codes():
        words = target, overrides or [], arg or [], model, gradient, tokens, num, device
        for line, right in _asked_again(again) if again is not None else _attempted(*words):
            typer.echo(printable(line))
            kept = kept and right
    if not kept:
        raise typer.Exit(1)


def _attempted(target: str | None, overrides: list[str], *rest: Any) -> Iterator[tuple[str, bool]]:
    from dav_ray.cli.trial.trial import attempt, call, named_code
    from dav_ray.errors import UserError

    if target is None:
        raise UserError("try-reward: what is to be tried? allowed: a reward, a recipe, or --again FILE")
    yield from ((line, True) for line in named_code(target))
    asked = call(target, overrides, *rest)
    yield from attempt(asked)


def _asked_again(place: str) -> Iterator[tuple[str, bool]]:
    from dav_ray.evaluation.rescore import asked_again

    yield from asked_again(place)
