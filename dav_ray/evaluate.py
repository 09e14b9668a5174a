"""Held-out evaluation: fresh samples without search, on the same seeds and prompts in every round.

Reward, measures that are never optimised, diversity (mean pairwise feature distance) and the KL to the pretrained
model along the sampled path: KL(p_theta(tau) || p_theta0(tau)) = E sum_t |mu - mu_0|^2 / (2 sigma_t^2).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dav_ray import buffer
from dav_ray.config import Config, Evaluate
from dav_ray.schedule import spans
from dav_ray.types import EvaluationChunk

if TYPE_CHECKING:
    from torch import Tensor

    from dav_ray.diffusion.base import Diffusion, Kernel
    from dav_ray.search.base import Scorer


@dataclass(frozen=True)
class Judges:
    """Held-out measures and the features that diversity is measured in."""

    heldout: tuple[tuple[str, Any], ...]  # (name, reward)
    features: Callable[[Tensor], Tensor]  # images [B, 3, H, W] -> [B, D]

    @classmethod
    def build(cls, config: Evaluate) -> Judges:
        from dav_ray.rewards.registry import resolve

        return cls(tuple((r.label, resolve(r.kind)(**r.args)) for r in config.heldout), _features(config.features))


def evaluation_chunks(
    config: Config,
    round: int,
    version: int,
    prompts: Sequence[str],
    num: int | None = None,
    seed: int | None = None,
) -> list[EvaluationChunk]:
    """Work items of `num` samples (default: evaluate.samples), the first `kl_samples` with the KL."""
    settings = config.evaluate
    first = settings.seed if seed is None else seed
    chunks: list[EvaluationChunk] = []
    kl = min(settings.kl_samples, settings.samples) if num is None else 0
    for part, measured in ((range(0, kl), True), (range(kl, num or settings.samples), False)):
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


def measure(diffusion: Diffusion, scorer: Scorer, judges: Judges, chunk: EvaluationChunk) -> pa.Table:
    """One row per sample: sample, seed, condition, reward, heldout/<name>, kl (or null), features, image."""
    import torch

    from dav_ray.noise import PipelineNoise
    from dav_ray.rewards.base import check, evaluate
    from dav_ray.search.base import ancestral

    path = _PathKL(diffusion, chunk.conditions) if chunk.kl else None
    states = ancestral(diffusion, chunk.conditions, PipelineNoise(chunk.seeds), path)
    images = diffusion.decode(states[-1])
    num = len(chunk.conditions)
    columns: dict[str, Any] = {
        "sample": pa.array(chunk.samples, pa.int64()),
        "seed": pa.array(chunk.seeds, pa.int64()),
        "condition": pa.array(chunk.conditions, pa.string()),
        "reward": pa.array(scorer.score(images, chunk.conditions).numpy(), pa.float64()),
        "kl": pa.array([None] * num if path is None else path.total.tolist(), pa.float64()),
        "image": pa.array([_png(image) for image in buffer.pixels(images)], pa.binary()),
    }
    pictures = images.cpu().numpy()
    for name, reward in judges.heldout:
        values = check(evaluate(reward, pictures, chunk.conditions, False), num, reward=name, chunk=chunk.name)
        columns[f"heldout/{name}"] = pa.array(values, pa.float64())
    with torch.no_grad():
        features = judges.features(images.cpu()).float().numpy()
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    fields.append(buffer.tensor_field("features", features))
    return pa.Table.from_arrays([*columns.values(), buffer.tensor_column(features)], schema=pa.schema(fields))


def summarise(table: pa.Table) -> dict[str, float]:
    """The metrics of one evaluation. Standard deviations are of the population of samples."""
    reward = table.column("reward").to_numpy()
    metrics = {"evaluate/reward_mean": float(reward.mean()), "evaluate/reward_std": float(reward.std())}
    for name in table.column_names:
        if name.startswith("heldout/"):
            metrics[name] = float(table.column(name).to_numpy().mean())
    kl = table.column("kl").drop_null()
    if len(kl):
        metrics["heldout/kl"] = float(np.mean(kl.to_numpy()))
    features, conditions = (
        buffer.read_tensors(table, "features"),
        np.array(table.column("condition").to_pylist()),
    )
    metrics["diversity/features"] = pairwise_distance(features)
    within = [features[conditions == c] for c in dict.fromkeys(conditions.tolist())]
    within = [group for group in within if len(group) > 1]
    if within:
        metrics["diversity/within_prompt"] = float(np.mean([pairwise_distance(group) for group in within]))
    return metrics


def one_line(round: int, metrics: dict[str, float]) -> str:
    """What a person wants to see of an evaluation as it happens."""
    shown = {"evaluate/reward_mean": "reward", "diversity/features": "diversity"}
    parts = [
        f"{shown.get(name, name)} {value:.4g}"
        for name, value in metrics.items()
        if name in shown or name.startswith("heldout/")
    ]
    return f"round {round}, {'pretrained' if round == 0 else 'aligned'}, without search: {', '.join(parts)}"


def pairwise_distance(features: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of distinct rows, features [n, D]; 0 for fewer than two."""
    n = len(features)
    if n < 2:
        return 0.0
    x = features.astype(np.float64)
    square = (x * x).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * x @ x.T, 0))
    np.fill_diagonal(distance, 0)
    return float(distance.sum() / (n * (n - 1)))


class _PathKL:
    """Adds up KL(p_theta || p_theta0) of the steps along sampled paths; one reference evaluation per step."""

    def __init__(self, diffusion: Diffusion, conditions: Sequence[str]) -> None:
        import torch

        self._diffusion, self._conditions = diffusion, conditions
        self.total = torch.zeros(len(conditions), dtype=torch.float64)

    def __call__(self, x_t: Tensor, t: int, kernel: Kernel) -> None:
        pretrained = self._diffusion.predict(x_t, t, self._conditions, reference=True).kernel
        self.total += kernel.kl(pretrained).double().cpu()


def _features(kind: str) -> Callable[[Tensor], Tensor]:
    if kind == "pixels":
        return lambda images: images.flatten(1)
    if kind == "digits":
        from dav_ray.rewards.digits import DigitReader

        return DigitReader.load().features
    from dav_ray.rewards.registry import resolve

    return resolve(kind)()


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def evaluate_run(run_dir: str, samples: int | None, address: str) -> None:
    """Evaluate the last policy of a run on fresh samples (default: evaluate.samples) and print the measures."""
    from dav_ray.fresh import fresh_samples

    round, table = fresh_samples(run_dir, samples, None, address)
    metrics = summarise(table)
    print(one_line(round, metrics))
    for name, value in metrics.items():
        print(f"{name:28} {value:.6g}")
