"""Images: PNGs, and diversity in a space of features."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dav_ray.diffusion.masked.alphabet import FASTA
from dav_ray.errors import UserError
from dav_ray.evaluation.base import Features, folder
from dav_ray.evaluation.diversity import pairwise_distance
from dav_ray.run_dir import shards
from dav_ray.run_dir.arrays import pixels
from dav_ray.types import EvaluationChunk

if TYPE_CHECKING:
    from torch import Tensor

COARSE = 64  # an evaluation of large images is otherwise megabytes a sample, through the driver's node


class Images:
    """features: auto (`coarse`), pixels, digits, or module.path:Name, as in evaluate.features."""

    def __init__(self, features: str) -> None:
        self._features = features

    def features(self) -> Features:
        if self._features == "auto":
            return coarse
        if self._features == "pixels":
            return lambda images: images.flatten(1)
        if self._features == "digits":
            from dav_ray.rewards.digits import DigitReader

            return DigitReader.load().features
        from dav_ray.rewards.registry import features

        return features(self._features)

    def columns(self, diffusion: Any, samples: Tensor, chunk: EvaluationChunk) -> dict[str, pa.Array]:
        """image: PNG."""
        return {"image": pa.array([_png(image) for image in pixels(samples)], pa.binary())}

    def measures(self, table: pa.Table) -> dict[str, float]:
        """diversity/features, and diversity/within_prompt over the prompts that have a pair, if any."""
        features = shards.read_tensors(table, "features")
        conditions = np.array(table.column("condition").to_pylist())
        metrics = {"diversity/features": pairwise_distance(features)}
        within = [features[conditions == c] for c in dict.fromkeys(conditions.tolist())]
        within = [group for group in within if len(group) > 1]
        if within:
            metrics["diversity/within_prompt"] = float(np.mean([pairwise_distance(group) for group in within]))
        return metrics

    def place(self, out: str) -> Path:
        path = Path(out)
        if path.suffix.lower() in (*FASTA, ".csv") and not path.is_dir():
            raise UserError(f"--out {out}: this run's samples are images, written one file each; allowed: a folder")
        return folder(path, out)

    def write(self, table: pa.Table, place: Path) -> str:
        """PNGs and samples.csv (file, sample, seed, condition; rewards and held-out measures where there are any)."""
        files = [f"{number:05d}.png" for number in table.column("sample").to_pylist()]
        for file, image in zip(files, table.column("image").to_pylist(), strict=True):
            (place / file).write_bytes(image)
        hidden = [name for name in ("image", "features", "kl") if name in table.column_names]
        frame = table.drop_columns(hidden).to_pandas()
        frame.insert(0, "file", files)
        frame.to_csv(place / "samples.csv", index=False)
        return f"{len(files)} samples and samples.csv in {place}"


def coarse(images: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] -> [B, D]: of images with a side of more than COARSE pixels, the mean colours of the blocks
    into which these are cut, at most COARSE along a side. Distances are those of images whose blocks have their mean
    colour, at full size."""
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = images.shape[-2:]
    small = min(height, COARSE), min(width, COARSE)
    if small == (height, width):
        return images.flatten(1)
    scale = (height * width / (small[0] * small[1])) ** 0.5
    return scale * adaptive_avg_pool2d(images.float(), small).flatten(1)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()
