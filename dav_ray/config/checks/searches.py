"""What can be known to be wrong with a search that does not ship with dav_ray, once its code may be imported."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping

from dav_ray.config.checks.rewards import import_own
from dav_ray.config.rules import broken_by_kind
from dav_ray.config.schema import Config
from dav_ray.diffusion import noise_rules
from dav_ray.redact import PATH, show
from dav_ray.registry import Unregistered
from dav_ray.search import kinds
from dav_ray.search.options import STOCHASTIC, Search, no_gradient, useless

_A_SEARCH = "a class with __call__(self, diffusion, scorer, conditions, noise)"
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def search_mistakes(config: Config) -> Iterator[str]:
    """A line for each mistake. What ships with dav_ray is checked with the recipe."""
    search = config.search
    if kinds.ships(search.kind):
        return
    at = f"search.kind = {show(search.kind, PATH)}"
    try:
        found = import_own(kinds.SEARCHES.target(search.kind), _A_SEARCH)
    except (ValueError, Unregistered) as error:
        yield f"{at}: {error}"
        return
    if not inspect.isclass(found) or "__call__" not in dir(found):
        yield f"{at}: is no search; allowed: {_A_SEARCH}"
        return
    parameters = inspect.signature(found).parameters
    yield from _argument_mistakes(search, parameters)
    facts, uses = search.facts, {*search.facts.uses, *parameters}
    if not noise_rules.draws(search.eta) and facts.stochastic:
        eta = show(list(search.eta)) if isinstance(search.eta, tuple) else f"{search.eta:g}"
        yield f"search.eta = {eta}: {STOCHASTIC}"
    if search.gradient and (mistake := no_gradient(search.kind, uses)):
        yield f"search.gradient = true: {mistake}"
    yield from useless(search, uses)
    for section, mistake in broken_by_kind({name: getattr(config, name) for name in Config.model_fields}):
        value = getattr(config, section)
        yield mistake if mistake.startswith(f"{section}.") else f"{section} = {show(value)}: {mistake}"


def _argument_mistakes(search: Search, parameters: Mapping[str, inspect.Parameter]) -> Iterator[str]:
    settings = search.facts.settings(1.0, blend=False, complete=False)  # any alpha: names alone count
    names = [name for name, one in parameters.items() if one.kind not in _OPEN and name not in settings]
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    rule = f"allowed: {', '.join(names) or 'no arguments'}"
    for name in search.args:
        if name in Search.model_fields:
            yield f"search.args.{name}: is a key of search; allowed: search.{name}"
        elif name in settings or (name not in parameters and not takes_all):
            close = difflib.get_close_matches(name, names, n=1)
            yield f"search.args.{name}: no such argument; {f'did you mean {close[0]}? ' if close else ''}{rule}"
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in search.args:
            yield f"search.args.{name}: missing; {rule}"
