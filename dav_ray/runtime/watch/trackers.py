"""The run's metrics in experiment trackers (TensorBoard, Weights & Biases, MLflow), through accelerate's classes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dav_ray.config.schema import Track

if TYPE_CHECKING:
    import pyarrow as pa

    from dav_ray.evaluation.shown_samples import ShownSamples

ROUND, SAMPLES = "round", "samples"


class Trackers:
    """Names as in metrics.jsonl, one step per round. Nothing is imported where no tracker is configured."""

    def __init__(self, config: Track, run_name: str, directory: str, settings: dict[str, Any]) -> None:
        """directory: a local folder for what trackers write to disk."""
        self._trackers: list[Any] = []
        if not config.kinds:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=True)  # accelerate's trackers ask it whether this is the main process
        for kind in config.kinds:
            cls = LOGGER_TYPE_TO_CLASS[kind]
            options = {"logging_dir": directory} if cls.requires_logging_directory else {}
            name = run_name if kind == "tensorboard" else config.project
            tracker = cls(name, **options)
            tracker.start()
            tracker.store_init_configuration(_flat(settings))
            if kind == "wandb":
                tracker.tracker.define_metric("*", step_metric=ROUND)
            self._trackers.append(tracker)

    def log(self, round: int, values: dict[str, float]) -> None:
        for tracker in self._trackers:
            if tracker.name == "wandb":  # drops what comes for an earlier step: with overlap rounds interleave
                tracker.log({**values, ROUND: round})
            else:
                tracker.log(values, step=round)

    def evaluation(self, round: int, table: pa.Table, limit: int) -> None:
        """At most `limit` samples of an evaluation, as `ShownSamples` chooses them."""
        if self._trackers:
            from dav_ray.evaluation.shown_samples import ShownSamples

            self.samples(round, ShownSamples.of(table, limit))

    def samples(self, round: int, shown: ShownSamples) -> None:
        """Some fresh samples of a round: images, or a table of sequences."""
        for tracker in self._trackers:
            _SHOW[tracker.name](tracker, round, shown)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _tensorboard(tracker: Any, round: int, shown: ShownSamples) -> None:
    if shown.images is None:
        tracker.log({SAMPLES: shown.markdown}, step=round)
    else:
        tracker.log_images({SAMPLES: shown.images}, step=round, dataformats="NHWC")


def _wandb(tracker: Any, round: int, shown: ShownSamples) -> None:
    wandb: Any = importlib.import_module("wandb")
    captions = [f"{c}: {r:.4g}".removeprefix(": ") for c, r in zip(shown.conditions, shown.rewards, strict=True)]
    if shown.images is None:
        rows = [list(row) for row in zip(shown.rewards, shown.conditions, shown.texts or [], strict=True)]
        value: Any = wandb.Table(columns=["reward", "condition", "sequence"], data=rows)
    else:
        value = [wandb.Image(image, caption=text) for image, text in zip(shown.images, captions, strict=True)]
    tracker.log({SAMPLES: value, ROUND: round})  # as for numbers: with overlap rounds interleave


def _mlflow(tracker: Any, round: int, shown: ShownSamples) -> None:
    mlflow: Any = importlib.import_module("mlflow")
    file = f"{SAMPLES}/round-{round:04d}"
    if shown.images is None:
        mlflow.log_text(shown.markdown, f"{file}.md")
    else:
        mlflow.log_image(shown.sheet, f"{file}.png")


_SHOW = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values that every tracker takes: numbers, booleans and text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
