"""Sequences: text, FASTA and CSV; diversity in edits; likeness to real sequences in k-mers and likelihood."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dav_ray.config.sections.evaluation import Evaluate
from dav_ray.diffusion.masked.alphabet import FASTA, Alphabet, read_sequences, to_fasta
from dav_ray.evaluation.base import Features, finite, folder
from dav_ray.evaluation.diversity import mean_edit_distance, pairwise_distance
from dav_ray.evaluation.kmers import correlation, count_kmers
from dav_ray.run_dir import shards
from dav_ray.run_dir.reward_columns import PREFIX, named
from dav_ray.types import EvaluationChunk

if TYPE_CHECKING:
    from torch import Tensor


class Sequences:
    """The reference file is read when it is first needed, and once: by the driver, never by the workers."""

    def __init__(self, alphabet: Alphabet, config: Evaluate) -> None:
        self._alphabet, self._config = alphabet, config

    def features(self) -> Features | None:
        """module.path:Name called on tokens [B, L] int64; auto: none, diversity is in edits."""
        if self._config.features == "auto":
            return None
        from dav_ray.rewards.registry import features

        return features(self._config.features)

    def columns(self, diffusion: Any, samples: Tensor, chunk: EvaluationChunk) -> dict[str, pa.Array]:
        """sequence: text; elbo: nats per sequence under the pretrained model, a sample's draws being its seed's."""
        from dav_ray.diffusion.noise import Streams, generator

        columns = {"sequence": pa.array(self._alphabet.decode(samples.cpu().numpy()), pa.string())}
        if self._config.elbo_draws:
            rng = Streams([generator(seed, 0, 0, 0) for seed in chunk.seeds])
            elbo = diffusion.elbo(samples, chunk.conditions, rng, self._config.elbo_draws)
            columns["elbo"] = pa.array(elbo.cpu().numpy(), pa.float64())
        return columns

    def measures(self, table: pa.Table) -> dict[str, float]:
        """diversity/edit_distance, diversity/unique, diversity/features with features of the user's own;
        heldout/elbo and median/elbo; heldout/kmer_correlation with a reference."""
        texts = table.column("sequence").to_pylist()
        metrics: dict[str, float] = {}
        if "elbo" in table.column_names and len(elbo := finite(table, "elbo")):
            metrics["heldout/elbo"], metrics["median/elbo"] = float(elbo.mean()), float(np.median(elbo))
        if self._config.reference is not None and texts:
            tokens = np.stack([self._alphabet.encode(text) for text in texts])
            likeness = correlation(count_kmers(tokens, self._config.kmer), self._reference)
            if likeness is not None:
                metrics["heldout/kmer_correlation"] = likeness
        metrics["diversity/edit_distance"] = mean_edit_distance(texts)
        metrics["diversity/unique"] = len(set(texts)) / max(len(texts), 1)
        if "features" in table.column_names:
            metrics["diversity/features"] = pairwise_distance(shards.read_tensors(table, "features"))
        return metrics

    @cached_property
    def _reference(self) -> Counter[int]:
        assert self._config.reference is not None
        return count_kmers(read_sequences(self._config.reference, self._alphabet), self._config.kmer)

    def place(self, out: str) -> Path:
        """A file where the ending says FASTA or CSV, else a folder."""
        path = Path(out)
        if path.suffix.lower() in (*FASTA, ".csv") and not path.is_dir():
            return folder(path.parent, out) / path.name
        return folder(path, out)

    def write(self, table: pa.Table, place: Path) -> str:
        """FASTA (named by sample number and reward, each of several too), CSV (sample, seed, condition, sequence,
        reward, reward/<name>, held-out measures, elbo), or samples.fasta and samples.csv in a folder; rewards and
        measures where they were computed."""
        if place.is_dir():
            for name in ("samples.fasta", "samples.csv"):
                self.write(table, place / name)
            return f"{table.num_rows} samples: samples.fasta and samples.csv in {place}"
        if place.suffix.lower() == ".csv":
            names = ["sample", "seed", "condition", "sequence", *_rewards(table)]
            names += [n for n in table.column_names if n.startswith("heldout/") or n == "elbo"]
            table.select(names).to_pandas().to_csv(place, index=False)
        else:
            names = [_title(row) for row in table.select(["sample", *_rewards(table)]).to_pylist()]
            place.write_text(to_fasta(names, table.column("sequence").to_pylist()), encoding="utf-8")
        return f"{table.num_rows} samples in {place}"


def _rewards(table: pa.Table) -> list[str]:
    """The columns of rewards, as far as there are any."""
    return [*(["reward"] if "reward" in table.column_names else []), *(f"{PREFIX}{name}" for name in named(table))]


def _title(row: dict[str, Any]) -> str:
    """A FASTA entry's line, the number and its rewards: no blanks in names, so that tools can split it."""
    shown = {name.removeprefix(PREFIX).replace(" ", "_"): value for name, value in row.items() if name != "sample"}
    return " ".join([str(row["sample"]), *(f"{name}={value:.6g}" for name, value in shown.items())])
