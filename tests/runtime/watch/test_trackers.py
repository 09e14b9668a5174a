"""What trackers get of a round's samples, read back from TensorBoard's own files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dav_ray.config.schema import Track
from dav_ray.evaluation.shown_samples import ShownSamples
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.runtime.watch.trackers import Trackers

PROMPTS = ["a", "b", "a", "b"]


def png(level: int, side: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def images(side: int = 16) -> pa.Table:
    rows = {"sample": [3, 2, 1, 0], "condition": PROMPTS, "reward": [0.4, 0.3, 0.2, 0.1]}
    return pa.table({**rows, "image": pa.array([png(40 * n, side) for n in (4, 3, 2, 1)], pa.binary())})


def sequences() -> pa.Table:
    rows = {"sample": [0, 1], "condition": ["", ""], "reward": [0.5, 1.25], "sequence": ["ACGT", "GGGG"]}
    return pa.table(rows)


def told(folder: Path, *tables: pa.Table) -> Any:
    """What TensorBoard reads after these evaluations, one per round."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(Track(kinds=("tensorboard",)), "mine", str(folder), {"rounds": 2})
    log = RunLog(LocalStorage(str(folder / "run")), 1, trackers)
    for round, table in enumerate(tables):
        log.metrics(round, "evaluate", {"evaluate/rise_sd": 0.5 * round})
        log.samples(round, table, 3)
    trackers.finish()
    found = EventAccumulator(str(folder / "mine"), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def test_images_of_every_round(tmp_path: Path) -> None:
    found = told(tmp_path, images(), images())
    events = found.Images("samples")
    assert [event.step for event in events] == [0, 1]
    with Image.open(io.BytesIO(events[1].encoded_image_string)) as sheet:
        shown = np.asarray(sheet.convert("RGB"))
    assert {40, 80, 120} <= set(np.unique(shown)) and 160 not in np.unique(shown)  # samples 0, 2 and 1
    assert [event.value for event in found.Scalars("evaluate/rise_sd")] == [0, 0.5]


def test_sequences_as_a_table(tmp_path: Path) -> None:
    found = told(tmp_path, sequences())
    (event,) = found.Tensors("samples/text_summary")
    assert event.tensor_proto.string_val[0].decode() == (
        "| reward | sequence |\n| --- | --- |\n| 0.5 | `ACGT` |\n| 1.25 | `GGGG` |"
    )


@pytest.mark.parametrize(("side", "shown"), [(16, 64), (100, 100), (600, 256)])
def test_images_are_shown_at_a_size_that_can_be_seen(side: int, shown: int) -> None:
    found = ShownSamples.of(images(side), 3)
    assert found.images is not None and found.images.shape == (3, shown, shown, 3)
    assert (found.conditions, found.rewards) == (["b", "b", "a"], [0.1, 0.3, 0.2])
    assert found.sheet.shape == (shown, 3 * shown, 3)


def test_without_a_tracker_nothing_is_read(tmp_path: Path) -> None:
    trackers = Trackers(Track(), "mine", str(tmp_path), {})
    RunLog(LocalStorage(str(tmp_path)), 1, trackers).samples(0, pa.table({}), 3)
