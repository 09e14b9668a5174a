"""What the report reads from a run directory: metrics by name and round, and the evaluation's samples.

A run that is still going, or stopped early, is read like any other: what is not there yet is empty.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dav_ray.config.families.table import family_of_section, ships
from dav_ray.config.recipe.typed_yaml import parse
from dav_ray.config.schema import Config
from dav_ray.config.sections.evaluation import Evaluate
from dav_ray.config.sections.reward import Reward
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.config_file import CHECKPOINTS_ALPHABET
from dav_ray.errors import RunError, UserError
from dav_ray.run_dir.manifest import ManifestStore, Shard, round_manifest_path
from dav_ray.run_dir.records import metric_rows
from dav_ray.run_dir.reward_columns import EVALUATED
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.strict import parse_object

SAMPLES_FILE = re.compile(r"(?:^|/)evaluate/round-(\d+)\.parquet$")

BUFFER_ROUNDS = 10  # the newest: a shard is read whole, whatever column is wanted
_TYPES = {
    "sample": pa.types.is_integer,
    "reward": pa.types.is_floating,
    "condition": pa.types.is_string,
    "sequence": pa.types.is_string,
    "image": pa.types.is_binary,
}
NAMES = {"heldout/kmer_correlation": "k-mer correlation", "heldout/elbo": "ELBO (nats per sequence)"}

Series = dict[int, float]  # round -> finite value, rounds ascending


@dataclass(frozen=True)
class Sample:
    """One fresh sample of the model after a round; `index` is the same seed and prompt in every round."""

    index: int
    condition: str
    reward: float
    image: bytes | None = None  # PNG


@dataclass(frozen=True)
class RunData:
    """A run directory without its samples. Round 0 is the pretrained model, or the policy that the run started from."""

    config_text: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    metrics: dict[str, Series]
    sample_files: dict[int, str]  # round -> path, rounds ascending
    sequences: bool  # whether samples are sequences, not images

    def series(self, name: str) -> Series:
        return self.metrics.get(name, {})

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.metrics if name.startswith(prefix))

    @property
    def heldout(self) -> list[str]:
        """Held-out measures; the KL shares their prefix and is shown on its own."""
        return [name for name in self.names("heldout/") if name != "heldout/kl"]

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards that are told apart; none where there is one."""
        return [name.removeprefix(EVALUATED[0]) for name in self.names(EVALUATED[0])]

    @property
    def alternatives(self) -> float | None:
        """Candidates of a step (smc: particles of a population); None where a search chooses among none."""
        most = max(self.series("search/ess_most").values(), default=1.0)
        return most if most > 1 else None

    @property
    def alphabet(self) -> Alphabet:
        return Alphabet.of(self._model.get("alphabet") or CHECKPOINTS_ALPHABET)

    @property
    def _model(self) -> dict[str, Any]:
        return self.config.get("model") or {}

    @property
    def origin(self) -> str | None:
        """The policy that round 0 measures, in words; None where that is the pretrained model."""
        init = self.config.get("init")
        if not isinstance(init, dict) or not init.get("run"):
            return None
        return f"version {init.get('version')} of {init['run']}"

    @property
    def first(self) -> str:
        """Round 0 in a word or two."""
        return "initial policy" if self.origin else "pretrained"

    @property
    def first_model(self) -> str:
        return "initial policy" if self.origin else "pretrained model"

    @property
    def evaluated(self) -> list[int]:
        """Without a mean reward too, where no sample's was finite."""
        return sorted({*self.series("evaluate/reward_mean"), *self.series("evaluate/feasible")})

    @property
    def rounds_done(self) -> int:
        return max([self.manifest.get("closed", 0), *self.evaluated])

    @property
    def rounds_total(self) -> int | None:
        total = self.config.get("rounds", Config.model_fields["rounds"].default)
        return total if isinstance(total, int) else None  # an unresolved ${...} reference is no number

    @property
    def grid_columns(self) -> int:
        columns = (self.config.get("evaluate") or {}).get("grid")
        return columns if isinstance(columns, int) else Evaluate.model_fields["grid"].default

    @property
    def reward_label(self) -> str:
        rewards = self.config.get("reward") or []
        rewards = [rewards] if isinstance(rewards, dict) else rewards
        return " + ".join(Reward.model_construct(**entry).label for entry in rewards) or "reward"

    @property
    def finished(self) -> bool:
        all_rounds = self.rounds_total is not None and self.rounds_done >= self.rounds_total
        return all_rounds or self.manifest.get("phase") == "done"

    @property
    def status(self) -> str:
        if self.finished:
            return "finished"
        phase, current = self.manifest.get("phase"), self.manifest.get("round")
        where = f": round {current}, {phase}" if phase is not None and current is not None else ""
        return f"not finished{where}"


def load_run(storage: Storage) -> RunData:
    """Read configuration, manifest and metrics; a directory that holds none of them is the user's mistake."""
    config_text = _text(storage, "config.yaml")
    manifest_text = _text(storage, "manifest.json")
    lines = storage.read_lines("metrics.jsonl")
    files = _sample_files(storage)
    if not (config_text or manifest_text or lines or files):
        raise UserError(f"no run in {storage.uri}: neither config.yaml, manifest.json nor metrics.jsonl is there")
    config = parse(config_text, f"{storage.uri}/config.yaml")
    _check_config(config, storage.uri)
    model = config.get("model") or {}
    return RunData(
        config_text=config_text,
        config=config,
        manifest=_manifest(manifest_text, f"{storage.uri}/manifest.json"),
        metrics=parse_metrics(lines),
        sample_files=files,
        sequences=_sequences(storage, model, files),
    )


def parse_metrics(lines: list[str]) -> dict[str, Series]:
    """Metrics by name. Of repeated lines for one round and role (after a resume) the last counts."""
    metrics: dict[str, Series] = {}
    for (round_, _), row in sorted(metric_rows(lines).items(), key=lambda item: item[0]):
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max:
                metrics.setdefault(name, {})[round_] = float(value)
    return metrics


def load_samples(storage: Storage, path: str, indices: list[int] | None = None) -> list[Sample]:
    """The samples of one round, by index. Images are read for named indices only: a full set can be large."""
    columns, filters = ["sample", "condition", "reward"], None
    if indices is not None:
        columns, filters = [*columns, "image"], [("sample", "in", indices)]
    table = load_table(storage, path, columns, filters)
    rows = sorted(table.to_pylist(), key=lambda row: row["sample"])
    return [Sample(row["sample"], row["condition"] or "", row["reward"], row.get("image")) for row in rows]


def load_table(
    storage: Storage, path: str, columns: list[str] | None = None, filters: list[Any] | None = None
) -> pa.Table:
    """A Parquet file of a run directory, or some of its columns. RunError naming it if it can't be read, or holds
    something else than an evaluation or a shard."""
    return _table(storage, path, storage.read(path), columns, filters)


def load_accepted(storage: Storage, run: RunData) -> pa.Table | None:
    """sequence, reward of what the open round and the BUFFER_ROUNDS - 1 before it accepted; None where that is nothing.
    A shard that was removed is left out; RunError naming one that is not what was committed."""
    closed = run.manifest.get("closed", 0)
    paths = [round_manifest_path(r) for r in range(max(1, closed + 2 - BUFFER_ROUNDS), closed + 1)]
    manifests = [_manifest(_text(storage, path), f"{storage.uri}/{path}") for path in paths]
    shards = [shard for manifest in [*manifests, run.manifest] for shard in manifest.get("shards", [])]
    store = ManifestStore(storage)
    tables = [
        _table(storage, shard.path, store.verify(shard), ["sequence", "reward"])
        for shard in map(Shard.from_fields, shards)
        if storage.exists(shard.path)
    ]
    return pa.concat_tables(tables) if tables else None


def _table(
    storage: Storage, path: str, data: bytes, columns: list[str] | None, filters: list[Any] | None = None
) -> pa.Table:
    try:
        table = pq.read_table(pa.BufferReader(data), columns=columns, filters=filters)
        table.validate(full=True)  # text that is none would be found too late
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError("storage", f"{storage.uri}/{path} can't be read as Parquet: {reason}") from None
    for name, check in _TYPES.items():
        if name in (columns or table.column_names) and not check(table.schema.field(name).type):
            raise RunError("storage", f"{storage.uri}/{path} can't be read: its column {name} is of another type")
    return table


def _manifest(text: str, where: str) -> dict[str, Any]:
    """A manifest or a round's; what is absent is left out. RunError naming a file that can't be read."""
    try:
        found = parse_object(text) if text else {}
        for name, kind in {"closed": int, "round": int, "phase": str, "shards": list, "versions": dict}.items():
            if name in found and type(found[name]) is not kind:
                raise ValueError(f"has no {name} that is one")
        for shard in found.get("shards", []):
            Shard.from_fields(shard)
    except ValueError as error:
        raise RunError("storage", f"{where} can't be read: it {error}") from None
    return found


def _sequences(storage: Storage, model: dict[str, Any], files: dict[int, str]) -> bool:
    """A family that is no part of dav_ray is not imported: what was written says what it draws."""
    if ships(model):
        family = family_of_section(model)
        return family is not None and family.samples == "sequences"
    newest = next(reversed(files.values()), None)
    return newest is not None and "sequence" in load_table(storage, newest).column_names


def _check_config(config: dict[str, Any], uri: str) -> None:
    """UserError for a config.yaml that no run wrote: the report reads a few keys of it, references unresolved."""
    rewards = config.get("reward") or []
    rewards = [rewards] if isinstance(rewards, dict) else rewards
    named = isinstance(rewards, list) and all(isinstance(r, dict) and isinstance(r.get("kind"), str) for r in rewards)
    sections = all(isinstance(config.get(name) or {}, dict) for name in ("model", "evaluate"))
    if not named or not sections or not isinstance((config.get("model") or {}).get("alphabet") or "", str):
        raise UserError(f"{uri}/config.yaml: is no configuration of a run; allowed: what `dav-ray run` wrote")


def thin(rounds: list[int], limit: int) -> list[int]:
    """At most `limit` of the rounds, evenly spaced, always with the first and the last."""
    if len(rounds) <= limit:
        return rounds
    return [rounds[round(i * (len(rounds) - 1) / (limit - 1))] for i in range(limit)]


def short_name(metric: str) -> str:
    """`diversity/within_prompt` -> `within prompt`."""
    return NAMES.get(metric) or metric.split("/", 1)[1].replace("_", " ")


def _text(storage: Storage, path: str) -> str:
    try:
        return storage.read(path).decode() if storage.exists(path) else ""
    except UnicodeDecodeError:
        raise RunError("storage", f"{storage.uri}/{path} can't be read: it is no text") from None


def _sample_files(storage: Storage) -> dict[int, str]:
    found = {path: SAMPLES_FILE.search(path) for path in storage.list("evaluate/")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))
