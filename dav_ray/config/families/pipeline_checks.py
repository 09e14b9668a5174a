"""Whether a folder holds a diffusers pipeline of a known layout. Reads JSON and headers, loads nothing."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config.families.table import PIPELINES
from dav_ray.config.model_path import model_path
from dav_ray.diffusion.pipelines.hub import INDEX, is_hub_id
from dav_ray.diffusion.weight_headers import tensor_shapes
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show
from dav_ray.strict import parse_object

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.config.sections.model import Model

LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may be made of: no code comes with a model
# of attention layers in older files: diffusers renames them as it loads a network
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Layout:
    """What a pipeline of one class is made of.

    name: the class; words: the class and its versions, for messages; policy: the network that is trained; networks: the
    parts with weights, the policy among them; others: parts that it must not have; packed: how many of the VAE's
    channels, of neighbouring places, are one channel each of the policy's.
    """

    name: str
    words: str
    policy: str
    networks: tuple[str, ...]
    parts: tuple[str, ...]
    others: frozenset[str]
    packed: int = 1


def pipeline_mistakes(folder: Path, layout: Layout, variant: str | None) -> Iterator[str]:
    """One line per reason why the folder holds no such pipeline; its scheduler and its weights are not read."""
    if what := _no_pipeline(folder, layout):
        yield what
        return
    yield from index_mistakes(folder / INDEX, layout)
    with contextlib.suppress(ValueError):
        if not _other_pipeline(index := read_part(folder / INDEX), layout):
            yield from _part_mistakes(folder, index, layout, variant)


def index_mistakes(file: Path, layout: Layout) -> Iterator[str]:
    """One line per reason why the pipeline whose index this file is has another layout."""
    try:
        index = read_part(file)
    except ValueError as error:
        yield f"is no diffusers pipeline: {error}"
        return
    if what := _other_pipeline(index, layout):
        yield what
        return
    yield from _index_mistakes(index, layout)


def class_name(path: str) -> str | None:
    """The class of the pipeline that lies there, as its index has it; None where that can't be read."""
    name = _index(path).get("_class_name")
    return name if isinstance(name, str) else None


def model_parts(path: str) -> list[tuple[str, str]]:
    """(library, class) of each part of a local pipeline, as its index names them; none where that can't be read."""
    named = [value for value in _index(path).values() if isinstance(value, list) and len(value) == 2]
    return [(library, name) for library, name in named if library in LIBRARIES and isinstance(name, str)]


def part_names(path: str) -> set[str]:
    """The names of a local pipeline's parts."""
    return _parts(_index(path))


def _index(path: str) -> dict[str, Any]:
    """A local pipeline's index; empty where there is none to be read."""
    try:
        return read_part(Path(model_path(path)) / INDEX)
    except (UserError, ValueError):
        return {}


def _no_pipeline(place: Path, layout: Layout) -> str | None:
    """What a path is that holds a part of a pipeline, or all of it in another form."""
    if place.is_file() and place.suffix in (".safetensors", ".ckpt"):
        convert = f"{layout.name}.from_single_file({place.name!r}).save_pretrained(FOLDER)"
        return f"a single file is not supported; supported: the folder of {layout.words}; convert it with {convert}"
    if (place / "config.json").is_file() and not (place / INDEX).exists():
        try:
            name = read_part(place / "config.json").get("_class_name")
        except ValueError:
            return None
        return f"a {show(str(name))} alone is not supported; supported: the folder of {layout.words}" if name else None
    return None


def _other_pipeline(index: dict[str, Any], layout: Layout) -> str | None:
    """One line for a pipeline of another class; None where its parts are those that are needed."""
    name, parts = index.get("_class_name"), _parts(index)
    if name == layout.name or parts.issuperset(layout.parts) and not parts & layout.others:
        return None
    return f"{show(str(name))} is not supported; supported: {', '.join(PIPELINES)}"


def _parts(index: dict[str, Any]) -> set[str]:
    return {key for key, value in index.items() if isinstance(value, list) and value and value[0]}


def useless(model: Model, keys: Sequence[str], layout: Layout) -> Iterator[str]:
    """One line per key of these that is set, and means nothing for pipelines of this layout."""
    for key in keys:
        value, default = getattr(model, key), type(model).model_fields[key].default
        if value != default:
            yield f"model.{key} = {value}: a {layout.name} has no use for it; allowed: {show(default)}"


def draft_mistakes(path: str | None) -> Iterator[str]:
    """Of a draft VAE on this disk."""
    if path is None or is_hub_id(path):
        return
    key, folder = f"model.draft_vae = {show(path, PATH)}", Path(os.path.expanduser(path))
    try:
        kind = read_part(folder / "config.json").get("_class_name")
    except ValueError as error:
        yield f"{key}: is no model's folder: {error}; allowed: an AutoencoderTiny (a folder or a hub id)"
        return
    if kind != "AutoencoderTiny":
        yield f"{key}: is a {show(str(kind))}; allowed: an AutoencoderTiny"
    elif not list(folder.glob("*.safetensors")):
        yield f"{key}: has no safetensors weights; allowed: a folder with them"


def read_part(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file."""
    where = f"{path.parent.name}/{path.name}"
    try:
        return parse_object(path.read_bytes())
    except OSError:
        raise ValueError(f"{where} is missing") from None
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _index_mistakes(index: dict[str, Any], layout: Layout) -> Iterator[str]:
    """Is it made of the layout's parts, with no other network in it?"""
    name = index.get("_class_name")
    parts = _parts(index)
    if missing := [part for part in layout.parts if part not in parts]:
        yield f"{name} has no {', '.join(missing)}; allowed: a {layout.name}"
    for part in layout.parts:
        library, kind = [*map(str, index[part]), "", ""][:2] if part in parts else (LIBRARIES[0], "")
        if library not in LIBRARIES or kind.startswith("Auto") and library == "transformers":
            rule = f"allowed: a class of {' or '.join(LIBRARIES)}; code that comes with a model is not run"
            yield f"its {part} is {show(f'{library}.{kind}')}; {rule}"
    others = sorted(parts & layout.others)
    if others:
        yield f"{name} also needs {', '.join(others)}; allowed: a {layout.name}"


def _part_mistakes(folder: Path, index: dict[str, Any], layout: Layout, variant: str | None) -> Iterator[str]:
    for part in layout.parts:
        if part in index and not (folder / part).is_dir():
            yield f"the folder {part} is missing"
    for part in layout.networks:
        pattern = f"*.{variant}*" if variant else "*"
        weights = [file for file in (folder / part).glob(pattern) if file.suffix == ".safetensors"]
        if (folder / part).is_dir() and not weights:
            yield f"the folder {part} has no safetensors weights{f' of variant {variant}' if variant else ''}"
    try:
        inputs = read_part(folder / layout.policy / "config.json").get("in_channels", 4)
        vae = read_part(folder / "vae" / "config.json")
        latents = vae.get("latent_channels", vae.get("z_dim", 4))
    except ValueError as error:
        if (folder / layout.policy).is_dir() and (folder / "vae").is_dir():
            yield str(error)
        return
    if inputs != latents * layout.packed:
        times = f" (times {layout.packed})" if layout.packed > 1 else ""
        words = f"the {layout.policy} takes {inputs} channels, the vae has {latents}{times}"
        yield f"{words}; allowed: a text-to-image pipeline"


def weight_mistakes(
    key: str, folder: Path, layout: Layout, targets: Sequence[str], usual: Sequence[str]
) -> Iterator[str]:
    """Files of weights that are not whole; else layers for adapters that the policy's network does not have.

    key: what the first are about; targets: ends of the layers' names, none without adapters; usual: those of a recipe
    that names none.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in layout.networks:
        for file in sorted((folder / part).glob("*.safetensors")):
            try:
                shapes = tensor_shapes(file)
            except (OSError, ValueError) as error:
                yield f"{key}: {part}/{show(file.name)} {error}"
                return
            found |= shapes if part == layout.policy else {}
    yield from target_mistakes(found, layout, targets, usual)


def target_mistakes(
    shapes: Mapping[str, tuple[int, ...]], layout: Layout, targets: Sequence[str], usual: Sequence[str]
) -> Iterator[str]:
    """A line where layers for adapters are none of the policy's network. shapes: of its tensors."""
    layers = sorted({_new_name(name.rpartition(".")[0]) for name in shapes})
    wrong = [t for t in targets if not any(f".{layer}".endswith(f".{t}") for layer in layers)]
    if not wrong:
        return
    matrices = {_new_name(name.rpartition(".")[0]) for name, shape in shapes.items() if len(shape) > 1}
    meant = ", ".join(near for target in wrong if (near := _nearest(target, matrices)))
    asked = f"; did you mean {meant}?" if meant else ";"
    known = sorted({layer.rpartition(".")[2] for layer in layers} - {str(i) for i in range(100)})
    rule = f"allowed: null ({', '.join(usual)}), or the ends of layers' names, for instance {', '.join(known[:8])}"
    yield f"mstep.lora.targets = {show(', '.join(wrong))}: the {layout.policy} has no such layer{asked} {rule}"


def _nearest(target: str, layers: Iterable[str]) -> str:
    """The one or two ends of layers' names that are most like the target; empty where none is alike."""
    ends = set()
    for layer in layers:
        parts = layer.split(".")
        ends |= {".".join(parts[-n:]) for n in range(1, min(len(parts), 4) + 1) if not parts[-n].isdecimal()}
    return " or ".join(difflib.get_close_matches(target, sorted(ends), n=2, cutoff=0.7))


def size_mistakes(model: Model, multiple: int) -> Iterator[str]:
    """One line for a height or width that is no multiple of what the VAE and the network divide it by."""
    for key in ("height", "width"):
        value = getattr(model, key)
        if value is not None and value % multiple:
            yield f"model.{key} = {value}: the VAE can't hold it; allowed: a multiple of {multiple}"


def guidance_mistakes(config: Config, why: str = "this model takes no guidance") -> Iterator[str]:
    """A line where a model that takes no guidance is given some; the key's default is as good as none."""
    scale, default = config.search.guidance_scale, type(config.search).model_fields["guidance_scale"].default
    if scale not in (0, 1, default):
        yield f"search.guidance_scale = {scale:g}: {why}; allowed: 0 or 1, which are none"


def _new_name(layer: str) -> str:
    parent, dot, own = layer.rpartition(".")
    return f"{parent}{dot}{OLD_NAMES.get(own, own)}"
