"""What can be known to be wrong with an objective that does not ship with dav_ray, once its code may be imported."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from dav_ray.config.checks.rewards import import_own
from dav_ray.mstep import registry
from dav_ray.mstep.options import MStep
from dav_ray.redact import PATH, show
from dav_ray.registry import Unregistered

_CALL = "(loss, weights, kl, batch)"
_AN_OBJECTIVE = f"a class whose instances are called with {_CALL}, or a function of them"
_GIVEN = (None,) * 4  # stand for what an objective is called with
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def objective_mistakes(mstep: MStep) -> Iterator[str]:
    """A line for each mistake."""
    if registry.ships(mstep.objective):
        return
    at = f"mstep.objective = {show(mstep.objective, PATH)}"
    try:
        found = import_own(registry.OBJECTIVES.target(mstep.objective), _AN_OBJECTIVE)
    except (ValueError, Unregistered) as error:
        yield f"{at}: {error}"
        return
    if not _is_called_so(found):
        yield f"{at}: can't be called with {_CALL}; allowed: {_AN_OBJECTIVE}"
        return
    given = () if inspect.isclass(found) else _GIVEN
    takes = inspect.signature(found)
    try:
        takes.bind(*given, **mstep.args)
    except TypeError as error:
        names = [name for name, one in takes.parameters.items() if one.kind not in _OPEN][len(given) :]
        rule = ", ".join(names) or "no arguments"
        yield f"mstep.args = {show(mstep.args)}: {mstep.objective}: {error}; allowed: {rule}"


def _is_called_so(found: Any) -> bool:
    """Whether a class's instances, or a function, which may take more arguments, can be called as objectives are."""
    try:
        if not inspect.isclass(found):
            inspect.signature(found).bind_partial(*_GIVEN)
        elif "__call__" not in dir(found):  # callable() would say that classes are
            return False
        else:
            inspect.signature(found.__call__).bind(None, *_GIVEN)
    except TypeError:
        return False
    return True
