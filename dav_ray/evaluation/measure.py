"""Held-out evaluation: fresh samples without search, on the same seeds and prompts in every round.

Reward, measures that are never optimised, what the kind of sample adds (`evaluation.kinds`: diversity, likelihood), and
the KL to the pretrained model along the sampled path: KL(p_theta(tau) || p_theta0(tau)), the sum of the steps'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dav_ray.config.partition import spans
from dav_ray.config.schema import Config
from dav_ray.errors import Stopped
from dav_ray.evaluation.base import Features, SampleKind, finite
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.run_dir import reward_columns, shards
from dav_ray.run_dir.reward_columns import EVALUATED
from dav_ray.types import EvaluationChunk

if TYPE_CHECKING:
    from torch import Tensor

    from dav_ray.diffusion.base import Diffusion, Kernel
    from dav_ray.rewards.base import Scorer


@dataclass(frozen=True)
class Judges:
    """Held-out measures, what the samples are, and the features that diversity is measured in, if any. retry_s: how
    long a measure is asked again that gives no answer for now."""

    heldout: tuple[tuple[str, Any], ...]  # (name, reward)
    kind: SampleKind
    features: Features | None
    retry_s: float = 0.0

    @classmethod
    def build(cls, config: Config, device: str = "cpu") -> Judges:
        from dav_ray.rewards.registry import build

        kind, columns = sample_kind(config), config.prompts.columns
        heldout = tuple((r.label, build(r.kind, r.args, device, columns)) for r in config.evaluate.heldout)
        return cls(heldout, kind, kind.features(), config.roles.reward.retry_s)


def evaluation_chunks(
    config: Config,
    round: int,
    version: int,
    prompts: Sequence[str],
    num: int | None = None,
    seed: int | None = None,
    *,
    kl: bool = True,
) -> list[EvaluationChunk]:
    """Work items of `num` samples (default: evaluate.samples), with `kl` the first `kl_samples` with the KL."""
    settings = config.evaluate
    first, count = settings.seed if seed is None else seed, num or settings.samples
    chunks: list[EvaluationChunk] = []
    split = min(settings.kl_samples, count) if kl else 0
    for part, measured in ((range(0, split), True), (range(split, count), False)):
        for span in spans(len(part), settings.batch):
            numbers = tuple(part[i] for i in span)
            chunks.append(
                EvaluationChunk(
                    round,
                    len(chunks),
                    version,
                    numbers,
                    tuple(first + n for n in numbers),
                    tuple(prompts[n % len(prompts)] for n in numbers),
                    measured,
                )
            )
    return chunks


def measure(
    diffusion: Diffusion,
    scorer: Scorer,
    judges: Judges,
    chunk: EvaluationChunk,
    stop: Callable[[], bool] = lambda: False,
) -> pa.Table:
    """One row per sample: sample, seed, condition, reward, reward/<name> (of several rewards), kl (or null), the
    columns of its kind, heldout/<name>, features (where they are measured).

    Raises Stopped once stop() says so, which is asked at every step, and before each thing that is asked about samples.
    """
    import torch

    from dav_ray.rewards.base import Asked, Calls, check

    def go_on() -> None:
        if stop():
            raise Stopped

    x_0, kl = _drawn(diffusion, chunk, go_on)
    samples = diffusion.decode(x_0, chunk.conditions)
    go_on()
    num = len(chunk.conditions)
    total, each = scorer.score_each(samples, chunk.conditions)
    go_on()
    columns: dict[str, Any] = {
        "sample": pa.array(chunk.samples, pa.int64()),
        "seed": pa.array(chunk.seeds, pa.int64()),
        "condition": pa.array(chunk.conditions, pa.string()),
        "reward": pa.array(total.numpy(), pa.float64()),
        **reward_columns.columns(scorer.names, each.numpy()),
        "kl": pa.array([None] * num if kl is None else kl.tolist(), pa.float64()),
        **judges.kind.columns(diffusion, samples, chunk),
    }
    shown = samples.cpu().numpy()  # images float32, tokens int64
    for name, reward in judges.heldout:
        go_on()
        scored = Calls(reward, retry_s=judges.retry_s)(shown, chunk.conditions, False)
        asked = Asked(shown, chunk.conditions, (name,), (scored,))
        values = check(scored, num, reward=name, chunk=chunk.name, asked=asked)
        columns[f"heldout/{name}"] = pa.array(values, pa.float64())
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    if judges.features is not None:
        with torch.no_grad():
            features = judges.features(samples.cpu()).float().numpy()
        fields.append(shards.tensor_field("features", features))
        columns["features"] = shards.tensor_column(features)
    return pa.Table.from_arrays([*columns.values()], schema=pa.schema(fields))


def _drawn(diffusion: Diffusion, chunk: EvaluationChunk, go_on: Callable[[], None]) -> tuple[Tensor, Tensor | None]:
    """x_0 of plain samples [N, *event], and the KL of their paths [N] where it is measured. go_on(): called at every
    step."""
    from dav_ray.diffusion.noise import PipelineNoise
    from dav_ray.diffusion.sampling import ancestral

    path = _PathKL(diffusion, chunk.conditions) if chunk.kl else None

    def observe(x_t: Tensor, t: int, kernel: Kernel) -> None:
        go_on()
        if path is not None:
            path(x_t, t, kernel)

    states = ancestral(diffusion, chunk.conditions, PipelineNoise(chunk.seeds), observe)
    return states[-1], None if path is None else path.total


def summarise(table: pa.Table, kind: SampleKind) -> dict[str, float]:
    """The metrics of one evaluation. Standard deviations are of the population of samples.

    Means and medians are over finite values, and absent where there are none: minus infinity says that a sample is
    infeasible. evaluate/feasible: the share of samples with a finite reward; absent where it is all.
    """
    metrics: dict[str, float] = {}
    reward = finite(table, "reward")
    if len(reward):
        metrics |= {"evaluate/reward_mean": float(reward.mean()), "evaluate/reward_std": float(reward.std())}
        metrics["median/reward"] = float(np.median(reward))
    metrics |= reward_columns.evaluated(table)
    if len(reward) < table.num_rows:
        metrics["evaluate/feasible"] = len(reward) / table.num_rows
    for name in table.column_names:
        if name.startswith("heldout/") and len(values := finite(table, name)):
            metrics[name] = float(values.mean())
            metrics[f"median/{name.removeprefix('heldout/')}"] = float(np.median(values))
    kl = table.column("kl").drop_null()
    if len(kl):
        metrics["heldout/kl"] = float(np.mean(kl.to_numpy()))
    return metrics | kind.measures(table)


def rise(metrics: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """evaluate/rise_sd: the rise of the mean reward over the first evaluation's, in standard deviations of its samples.
    Absent where a mean is (no sample had a finite reward), or those samples are all alike."""
    name, spread = "evaluate/reward_mean", first.get("evaluate/reward_std")
    if not spread or name not in metrics or name not in first:
        return {}
    return {"evaluate/rise_sd": (metrics[name] - first[name]) / spread}


def table_path(round: int) -> str:
    return f"evaluate/round-{round:04d}.parquet"


def one_line(round: int, metrics: dict[str, float], first: str = "pretrained") -> str:
    """What a person wants to see of an evaluation as it happens. first: what round 0 measures."""
    shown = {
        "evaluate/reward_mean": "reward",
        "evaluate/feasible": "feasible",
        "diversity/features": "diversity",
        "diversity/edit_distance": "edit distance",
        "diversity/unique": "unique",
    }
    shown |= {n: n.removeprefix(EVALUATED[0]) for n in metrics if n.startswith(EVALUATED[0])}
    parts = [
        f"{shown.get(name, name)} {value:.4g}"
        for name, value in metrics.items()
        if name in shown or name.startswith("heldout/")
    ]
    return f"round {round}, {first if round == 0 else 'aligned'}, without search: {', '.join(parts)}"


class _PathKL:
    """Adds up KL(p_theta || p_theta0) of the steps along sampled paths; one reference evaluation per step, and where
    the model rounds to half precision one of the policy more."""

    def __init__(self, diffusion: Diffusion, conditions: Sequence[str]) -> None:
        import torch

        self._diffusion, self._conditions = diffusion, conditions
        self.total = torch.zeros(len(conditions), dtype=torch.float64)

    def __call__(self, x_t: Tensor, t: int, kernel: Kernel) -> None:
        from dav_ray.diffusion.exact import against_reference

        policy, pretrained = against_reference(self._diffusion, x_t, t, self._conditions, kernel)
        self.total += policy.kl(pretrained).double().cpu()
