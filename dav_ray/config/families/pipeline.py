"""What all diffusers pipelines have in common. The family of one class of pipelines is a subclass."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dav_ray.config.families.base import Family, Runtime
from dav_ray.config.families.described import Described
from dav_ray.config.families.pipeline_checks import (
    class_name,
    draft_mistakes,
    index_mistakes,
    model_parts,
    part_names,
    pipeline_mistakes,
    read_part,
    target_mistakes,
    weight_mistakes,
)
from dav_ray.config.families.prompt_lengths import Reader, length_mistakes
from dav_ray.config.families.table import PIPELINES, USUAL_PIPELINE, pipeline_of
from dav_ray.config.model_path import model_path
from dav_ray.diffusion.pipelines.hub import INDEX, Unseen, check_hub_id, is_hub_id, look, not_from_the_hub
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.config.sections.model import Model

SCHEDULER = "scheduler/scheduler_config.json"


class Pipeline(Described):
    """A folder or hub id that diffusers loads. A subclass adds the layout, the schedule's checks and what it builds."""

    samples = "images"
    start = "usually 15 s, as they import torch, diffusers and transformers"
    readers: ClassVar[tuple[Reader, ...]] = ()  # of prompts

    def at(self, path: str, pipeline: str | None = None) -> Family:
        """The family of the pipeline's class: this one where nobody says which it is."""
        return pipeline_of(pipeline or class_name(path)) or self

    def own_values(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's class, where it is not the usual one: whoever reads a run later may not have the model, or
        the hub."""
        path = section.get("path")
        if "pipeline" in section or not isinstance(path, str):
            return {}
        found = class_name(path)
        if found is None and is_hub_id(path):
            with contextlib.suppress(Unseen, ValueError):  # said where the model is checked
                revision = section.get("revision")  # which may be typed as a number
                found = read_part(look(path, INDEX, revision and str(revision))).get("_class_name")
        return {"pipeline": found} if found in PIPELINES and found != USUAL_PIPELINE else {}

    def preload(self, model: Model) -> tuple[str, ...]:
        return *self.imports, *(f"{library}:{name}" for library, name in model_parts(model.path))

    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        yield from draft_mistakes(config.model.draft_vae)
        if config.model.pipeline and config.model.pipeline not in PIPELINES:
            yield f"model.pipeline = {config.model.pipeline}: is not supported; supported: {', '.join(PIPELINES)}"
            return
        key = f"model.path = {show(config.model.path, PATH)}"
        targets = config.lora_targets if config.mstep.parameters == "lora" else ()
        if is_hub_id(path):
            yield from self._hub_mistakes(config, path, key)
            with contextlib.suppress(ValueError):  # nothing is known of this model's layers
                sizes = self.described(config)
                yield from target_mistakes(sizes.shapes[sizes.policy], self.layout, targets, self.lora_targets)
            return
        if not os.path.exists(path):
            yield f"{key}: no such folder; allowed: a pipeline folder, a hub id (org/name) or shipped:digits"
            return
        folder = Path(path)
        found = list(pipeline_mistakes(folder, self.layout, config.model.variant))
        yield from (f"{key}: {mistake}" for mistake in found)
        if not found:
            yield from self.schedule_mistakes(key, folder, config)
            yield from weight_mistakes(key, folder, self.layout, targets, self.lora_targets)

    def _hub_mistakes(self, config: Config, path: str, key: str) -> Iterator[str]:
        """Of a hub id's two small files, before gigabytes are downloaded; none where this machine can't see them:
        another one may."""
        revision = config.model.revision
        try:
            index = look(path, INDEX, revision)
            found = list(index_mistakes(index, self.layout))
            yield from (f"{key}: {mistake}" for mistake in found)
            if not found:
                yield from self.schedule_mistakes(key, look(path, SCHEDULER, revision).parents[1], config)
        except Unseen:
            return
        except ValueError as error:
            yield not_from_the_hub(path, str(error))

    def schedule_mistakes(self, key: str, folder: Path, config: Config) -> Iterator[str]:
        """One line per reason why the pipeline's scheduler, or the number of steps, can't be searched with."""
        return iter(())

    def check_weights(self, config: Config, path: str) -> None:
        """Prompts that are cut where they are embedded: what a local pipeline's tokenizers tell."""
        if config.model.long_prompts == "cut" or is_hub_id(path):
            return
        texts = {f"prompts[{i}]": text for i, text in enumerate(config.prompts)}
        if config.model.negative_prompt:
            texts["model.negative_prompt"] = config.model.negative_prompt
        present, longest = frozenset(part_names(path)), config.model.max_sequence_length
        readers = tuple(replace(r, limit=longest) if longest and r.limit else r for r in self.readers)
        if lines := list(length_mistakes(Path(path), readers, present, texts)):
            raise UserError(lines)

    def check_here(self, config: Config) -> None:
        check_hub_id(config.model.path, config.model.revision)

    def pinned(self, config: Config) -> Config:
        """A hub id at the commit that its revision stands for now."""
        path = model_path(config.model.path)
        if not is_hub_id(path):
            return config
        from dav_ray.diffusion.pipelines.one_download import commit_of

        commit = commit_of(path, config.model.revision)
        return config.model_copy(update={"model": config.model.model_copy(update={"revision": commit})})

    def files(self, config: Config) -> dict[str, Any]:
        """Which of the pipeline's files are loaded, and how: arguments of the loader."""
        model = config.model
        return {
            "path": model_path(model.path),
            "dtype": model.dtype,
            "variant": model.variant,
            "revision": model.revision,
        }

    def aligned(self, config: Config, folder: Path) -> Any:
        from dav_ray.diffusion.pipelines.files import attach

        pipe = self.pretrained(config)
        attach(pipe, folder, lora=config.mstep.parameters == "lora", component=self.layout.policy)
        return pipe


def latent_options(config: Config, held: Runtime) -> dict[str, Any]:
    """How a `LatentModel` is built, whatever its pipeline: all but its parts and the size of its images."""
    model, search = config.model, config.search
    return {
        "steps": search.steps,
        "eta": search.eta,
        **({} if search.noise is None else {"noise": search.noise}),  # else the model's own rule
        "guidance_scale": search.guidance_scale,
        "negative_prompt": model.negative_prompt,
        "max_sequence_length": model.max_sequence_length,
        "micro_batch": held.micro_batch,
        "decode_batch": search.decode_batch,
        "device": held.device,
        "autocast": held.autocast,
        "channels_last": model.channels_last,
        "draft_above": model.draft_above,
    }
