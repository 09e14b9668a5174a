"""Which kind of samples a configuration's model draws."""

from __future__ import annotations

from collections.abc import Callable

from dav_ray.config.families.alphabet import alphabet_of
from dav_ray.config.families.base import Samples
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.evaluation.base import SampleKind


def sample_kind(config: Config) -> SampleKind:
    return KINDS[family_of(config.model).samples](config)


def _images(config: Config) -> SampleKind:
    from dav_ray.evaluation.images import Images

    return Images(config.evaluate.features)


def _sequences(config: Config) -> SampleKind:
    from dav_ray.evaluation.sequences import Sequences

    return Sequences(alphabet_of(config.model), config.evaluate)


KINDS: dict[Samples, Callable[[Config], SampleKind]] = {"images": _images, "sequences": _sequences}
