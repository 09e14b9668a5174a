"""`dav-ray try-reward`: a reward, or those of a recipe, tried in this process on a few samples, without Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.checks.prompt_columns import column_mistakes
from dav_ray.config.checks.rewards import reward_mistakes
from dav_ray.config.checks.user_code import not_ours
from dav_ray.config.imports import said_import
from dav_ray.config.recipe.load import load, shipped
from dav_ray.config.schema import Config
from dav_ray.config.sections.prompts import Prompts
from dav_ray.config.sections.reward import Reward
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show
from dav_ray.registry import absolute, is_file, known, on_path
from dav_ray.rewards.registry import REWARDS, SCORES, fact

SHARE = 0.1  # of the rewards' standard deviation: a temperature to begin with


@dataclass(frozen=True)
class Call:
    """What is tried: rewards, on samples of a model (made up in its size, or drawn from it), or of no model."""

    rewards: tuple[Reward, ...]
    config: Config | None
    draw: bool
    gradient: bool
    tokens: str | None
    num: int
    device: str


def call(
    target: str,
    overrides: Sequence[str],
    args: Sequence[str],
    model: str | None,
    gradient: bool,
    tokens: str | None,
    num: int,
    device: str,
) -> Call:
    """The words of the command, checked. UserError: what is wrong with them."""
    if is_reward(target):
        kind = absolute(target, Path(".")) if is_file(target) else target
        rewards = (Reward(kind=kind, args=_arguments(args)),)
        if overrides and model is None:
            raise UserError(
                f"{overrides[0]}: is a setting of a recipe; allowed: with --model RECIPE, or --arg NAME=VALUE"
            )
        config = None if model is None else load(model, overrides).config
    else:
        if args:
            raise UserError("--arg: is for one reward; allowed: settings such as reward.args.scale=2 after a recipe")
        if target not in shipped() and not os.path.exists(os.path.expanduser(target)):
            raise UserError(f"{show(target, PATH)}: no reward and no recipe; {known(target, [*REWARDS, *shipped()])}")
        named = load(target, overrides).config
        rewards, gradient = named.reward, gradient or named.search.gradient
        config = named if model is None else load(model, overrides).config
    if config is not None:
        on_path(config.modules)
    mistakes = [] if config is None else list(model_mistakes(config))
    for i, reward in enumerate(rewards):
        key = "reward" if len(rewards) == 1 else f"reward[{i}]"
        mistakes += reward_mistakes(key, reward, False, "auto")
        mistakes += column_mistakes(key, reward, Prompts() if config is None else config.prompts)
    if mistakes:
        raise UserError(mistakes)
    return Call(rewards, config, model is not None, gradient, tokens, num, device)


def is_reward(target: str) -> bool:
    """Whether these words name a reward, and no recipe."""
    if os.path.isfile(target) and not target.endswith(".py"):
        return False
    if target.endswith(".py"):
        raise UserError(f"{show(target, PATH)}: names no class or function; allowed: {target}:Name")
    return target in REWARDS or ":" in target


def attempt(asked: Call) -> Iterator[tuple[str, bool]]:
    """Lines for the terminal, each with whether what it says is right; heavy imports are made here."""
    import torch

    from dav_ray.cli.trial.checks import Finding

    torch.manual_seed(0)
    if asked.draw:
        yield f"drawing {asked.num} samples of the model on {asked.device}", True
    shown = _shown(asked)
    values: list[np.ndarray | None] = []
    for reward in asked.rewards:
        yield f"{reward.label}, on {len(shown.conditions)} {shown.what}", True
        found: list[np.ndarray] = []
        for part in _tried(reward, asked, shown, found):
            if isinstance(part, Finding):
                yield from _in_words(part)
            else:
                yield part, True
        values.append(found[0] if found else None)
    if shown.real and all(one is not None for one in values):
        yield from ((line, True) for line in _temperature(asked.rewards, [v for v in values if v is not None]))
    elif not asked.draw and all(one is not None for one in values):
        yield "made-up samples tell nothing of search.alpha; --model RECIPE draws some of a model", True


def _shown(asked: Call) -> Any:
    from dav_ray.cli.trial.samples import DNA, drawn, made_up, tokens_of

    if asked.draw and asked.config is not None:
        return drawn(asked.config, asked.num, asked.device)
    tokens = None if asked.tokens is None else tokens_of(asked.tokens)
    if (
        tokens is None
        and asked.config is None
        and all(fact(reward.kind, SCORES) == "sequences" for reward in asked.rewards)
    ):
        tokens = DNA
    return made_up(asked.num, asked.config, tokens)


def _tried(reward: Reward, asked: Call, shown: Any, found: list[np.ndarray]) -> Iterator[Any]:
    """Findings and plain lines; the values come into `found`."""
    from dav_ray.cli.trial.checks import Asking, contract, other_sizes
    from dav_ray.cli.trial.gradient import gradient
    from dav_ray.cli.trial.samples import OTHER_SIDES, images
    from dav_ray.rewards.registry import build

    try:
        columns = asked.config.prompts.columns if asked.config is not None else {}
        asking = Asking(build(reward.kind, dict(reward.args), asked.device, columns))
    except Exception as error:  # the user's constructor may raise anything
        yield _not_built(error)
        return
    first = asking.ask(shown.samples, shown.conditions)
    findings = list(contract(asking, shown, first))
    if first.scored.values is not None and first.values.shape == (len(shown.conditions),):
        found.append(first.values)
        yield from _values(first.values, shown.names)
        single = asking.ask(shown.samples[:1], shown.conditions[:1])
        batch = asking.ask(shown.samples, shown.conditions)
        num, alone = len(shown.conditions), 1000 * single.seconds
        yield f"  time: {1000 * batch.seconds / num:.3g} ms a sample in a batch of {num}, {alone:.3g} ms alone"
    yield from findings
    if all(finding.ok is not False for finding in findings):
        if not shown.real and not shown.letters:
            yield from other_sizes(asking, [images(2, *sides, shown.conditions) for sides in OTHER_SIDES])
        if asked.gradient or asking.differentiable:
            rows = [i for i in range(len(shown.conditions)) if shown.names[i] not in ("black", "white")]
            yield from gradient(asking, shown.take(rows or range(len(shown.conditions))))


def _not_built(error: Exception) -> Any:
    import traceback

    from dav_ray.cli.trial.checks import Finding
    from dav_ray.run_dir.tracebacks import own_part

    trace = own_part("".join(traceback.format_exception(error)))
    return Finding("is built from its arguments", False, f"{type(error).__name__}: {error}", trace=tuple(trace))


def _values(values: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    listed = ", ".join(f"{value:.6g} ({name})" for value, name in zip(values[:8], names[:8], strict=True))
    yield f"  values: {listed}{', ...' if len(values) > 8 else ''}"
    finite = values[np.isfinite(values)]
    if len(finite):
        yield f"  mean {finite.mean():.6g}, standard deviation {finite.std():.3g}"


def _in_words(finding: Any) -> Iterator[tuple[str, bool]]:
    mark = {True: "ok", False: "WRONG", None: "note"}[finding.ok]
    yield from ((f"    {line}", True) for line in finding.trace)
    yield f"  {mark:<6}{finding.title}{f': {finding.words}' if finding.words else ''}", finding.ok is not False
    if finding.advice:
        yield f"        {finding.advice}", True


def _temperature(rewards: Sequence[Reward], values: Sequence[np.ndarray]) -> Iterator[str]:
    """A search.alpha to begin with: too large and the choice is idle, too small and it is blind."""
    with np.errstate(invalid="ignore"):
        total = sum(reward.weight * one for reward, one in zip(rewards, values, strict=True))
    finite = np.asarray(total)[np.isfinite(total)]
    if len(finite) < 2 or not finite.std():
        yield "the samples are all worth the same: no search.alpha can choose among them"
        return
    sd = float(finite.std())
    what = "the reward" if len(rewards) == 1 else "the weighted sum"
    yield (
        f'{what} has a standard deviation of {sd:.3g} over {len(finite)} samples: search.alpha: "{SHARE:g} sd" is '
        f"about {SHARE * sd:.2g}, a value to begin with"
    )


def _arguments(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as in YAML."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--arg {show(text)}: allowed: NAME=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--arg {show(text)}: its value is no YAML; allowed: a number, a text, a list") from None
    return found


def named_code(target: str) -> list[str]:
    """Which code of the user's own will be imported, said before any of it is."""
    if not is_reward(target) or not not_ours(target, REWARDS):
        return []
    target = REWARDS.target(target)
    return [said_import("reward", absolute(target, Path(".")) if is_file(target) else target)]
