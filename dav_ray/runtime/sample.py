"""`dav-ray sample`: samples of one of a run's policies as files, with what each of them is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dav_ray.config.checks.preflight import check
from dav_ray.config.checks.rewards import reward_mistakes
from dav_ray.config.checks.user_code import announced
from dav_ray.config.imports import ABSENT
from dav_ray.config.schema import Config
from dav_ray.config.sections.reward import Reward
from dav_ray.config.stored import StoredRun
from dav_ray.config.which_policy import wanted_version
from dav_ray.errors import DataError
from dav_ray.evaluation.base import check_free
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.redact import printable

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Wanted:
    """What to draw. prompts, seed, steps: the run's own where they are not given; version: last, best or a number;
    reward: with the columns of rewards and held-out measures, as far as they can be had."""

    num: int
    out: str
    seed: int | None = None
    prompts: tuple[str, ...] = ()
    version: str = "last"
    steps: int | None = None
    reward: bool = True
    force: bool = False


def sample_run(run_dir: str, wanted: Wanted, address: str) -> None:
    """Writes samples: images as PNGs and samples.csv into the folder `out`, sequences as FASTA or CSV.

    Sample i of a pipeline is what `StableDiffusionPipeline` draws with `torch.Generator().manual_seed(seed + i)`.
    address `local`: in this process, else on the search actors of that cluster; the samples are the same. UserError,
    before anything is started, if `out` is no place for samples of this run, or is not empty, or the model is gone.
    """
    from dav_ray.runtime.inference import stored_run

    stored = stored_run(run_dir)
    check_free(wanted.out, force=wanted.force)
    version = wanted_version(stored, wanted.version)
    if wanted.reward:
        for line in announced(stored.config):  # before any of it is imported, from where the run found it
            if ABSENT not in line:
                print(printable(line))
    config, remarks = drawn_with(stored.config, wanted, address)
    check(config.model_copy(update=_without(config)), address)
    kind = sample_kind(config)
    place = kind.place(wanted.out)
    table, silent = _drawn(stored, config, version, wanted, address)
    for line in [*remarks, *silent]:
        print(f"dav-ray: {printable(line)}", file=sys.stderr)
    print(kind.write(table, place))


def drawn_with(config: Config, wanted: Wanted, address: str) -> tuple[Config, list[str]]:
    """The run's configuration as the samples are drawn with it, without rewards that can't be had; a line for each of
    these."""
    search, evaluate = config.search, config.evaluate
    changes = {
        "search": search if wanted.steps is None else search.model_copy(update={"steps": wanted.steps}),
        "prompts": config.prompts.replaced(wanted.prompts) if wanted.prompts else config.prompts,
        # no KL and no features: they compare, and are no part of what is written
        "evaluate": evaluate.model_copy(update={"kl_samples": 0, "features": "auto"}),
    }
    config = config.model_copy(update=changes)
    if not wanted.reward:
        return config.model_copy(update=_without(config)), []
    remarks = [f"no reward column: {why}" for i in range(len(config.reward)) for why in _absent(config, i, address)]
    kept: list[Reward] = []
    for i, measure in enumerate(config.evaluate.heldout):
        why = [*reward_mistakes(f"evaluate.heldout[{i}]", measure, False, address)]
        remarks += [f"no heldout/{measure.label} column: {line}; {_HINT}" for line in why]
        kept += [] if why else [measure]
    scored = () if any(line.startswith("no reward") for line in remarks) else config.reward
    judged = config.evaluate.model_copy(update={"heldout": tuple(kept)})
    return config.model_copy(update={"reward": scored, "evaluate": judged}), remarks


_HINT = "for one of your own start this where its module is found (cd, PYTHONPATH); --no-reward asks for none"


def _absent(config: Config, number: int, address: str) -> Iterator[str]:
    """Why the reward of this number can't be computed."""
    reward, role = config.reward[number], config.reward_role(config.reward[number])
    key = "reward" if len(config.reward) == 1 else f"reward[{number}]"
    own = [name for name in ("python", "pip", "container") if getattr(role, name)]
    if address == "local" and (reward.python or own):
        yield f"{key} has an environment of its own; --address auto or HOST:PORT computes it there"
        return
    yield from (f"{line}; {_HINT}" for line in reward_mistakes(key, reward, False, address))


def _without(config: Config) -> dict[str, object]:
    """Changes after which nothing of the rewards is left."""
    return {"reward": (), "evaluate": config.evaluate.model_copy(update={"heldout": ()})}


def _drawn(stored: StoredRun, config: Config, version: int, wanted: Wanted, address: str) -> tuple[pa.Table, list[str]]:
    from dav_ray.evaluation.measure import evaluation_chunks

    round = stored.manifest.closed
    chunks = evaluation_chunks(config, round, version, config.prompts, wanted.num, wanted.seed)
    try:
        if address == "local":
            from dav_ray.evaluation.drawing import draw

            return draw(stored.storage, config, chunks)
        from dav_ray.runtime.inference import measuring

        with measuring(stored, address, config) as measure:
            table = measure(chunks)
        return table if config.reward else table.drop_columns(["reward"]), []
    except DataError as error:
        if wanted.reward and error.role == "reward":
            error.cause += "; --no-reward draws without"
        raise
