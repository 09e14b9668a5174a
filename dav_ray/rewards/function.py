"""A plain function as a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dav_ray.rewards.samples.columns import columns_of

if TYPE_CHECKING:
    from torch import Tensor


class FunctionReward:
    """function(samples, conditions, **args) -> [B]; with what the function says of itself, for instance that it has a
    gradient: `function.differentiable = True`. One that wants columns of the prompts gets them after the conditions."""

    def __init__(self, function: Callable[..., Tensor], args: Mapping[str, Any]) -> None:
        self._function, self._args = function, dict(args)
        self.differentiable = bool(getattr(function, "differentiable", False))
        self.wants = getattr(function, "wants", "float32")
        self.by_row = getattr(function, "by_row", False)
        self.prompt_columns = columns_of(function)

    def __call__(self, samples: Tensor, conditions: Sequence[str], *columns: Mapping[str, Sequence[Any]]) -> Tensor:
        return self._function(samples, conditions, *columns, **self._args)
