"""Whether the prompts have the columns that rewards want."""

from __future__ import annotations

from collections.abc import Iterator

from dav_ray.config.checks.rewards import DEEPEST, as_reward, factors, import_own
from dav_ray.config.sections.prompts import Prompts
from dav_ray.config.sections.reward import Reward
from dav_ray.redact import PATH, show
from dav_ray.registry import Unregistered
from dav_ray.rewards.registry import REWARDS
from dav_ray.rewards.samples.columns import columns_of, lacking


def column_mistakes(key: str, reward: Reward, prompts: Prompts) -> Iterator[str]:
    """A line per column that a reward's class wants and a prompt has not. key: of the reward in the recipe."""
    known = dict.fromkeys(name for columns in prompts.columns.values() for name in columns)
    for name in wanted(key, reward):
        found = lacking(prompts.columns, prompts, [name])
        start = f"{key}.kind = {show(reward.kind, PATH)}: wants the column {name} of the prompts"
        if found and name in known:
            yield f"{start}; {show(found[0])} has none; allowed: prompts that all have it"
        elif found:
            yield f"{start}; they have {', '.join(known) or 'texts alone'}; allowed: prompts with this column"


def wanted(key: str, reward: Reward, depth: int = 0) -> list[str]:
    """The columns that its class or function, and its factors, say that they want; what can't be imported here says
    nothing."""
    names: list[str] = []
    if reward.kind not in REWARDS.builtin and reward.python is None:
        try:
            names += columns_of(import_own(REWARDS.target(reward.kind)))
        except (ValueError, Unregistered):  # told by the other checks
            return []
    for _, entry in factors(key, reward):
        factor = as_reward(entry)
        if factor is not None and depth < DEEPEST:
            names += wanted(key, factor.model_copy(update={"python": reward.python}), depth + 1)
    return list(dict.fromkeys(names))
