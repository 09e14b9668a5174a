"""Where a model lies, and whether it is a pipeline that can be searched. Reads JSON and headers, loads nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dav_ray.config import Config
from dav_ray.errors import UserError
from dav_ray.keys import PATH, show
from dav_ray.masked_model import masked_mistakes
from dav_ray.mstep.options import LORA_TARGETS
from dav_ray.parsing import parse_object, tensor_shapes
from dav_ray.recipe_paths import SHIPPED, is_hub_id

ASSETS = Path(__file__).parent / "assets"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORKS = ("unet", "vae", "text_encoder")
OTHERS = {"text_encoder_2", "transformer", "controlnet", "image_encoder", "prior", "low_res_scheduler"}
# Schedulers that are defined by a table of alphas_cumprod, which is all that a DDIM sampler needs.
CONVERTIBLE = {
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep"),
        *("DPMSolverSDE", "DEISMultistep", "UniPCMultistep"),
    )
}
PREDICTIONS = ("epsilon", "v_prediction")
SUPPORTED = "a StableDiffusionPipeline (SD 1.x, 2.x)"
TRUE = ("1", "ON", "YES", "TRUE")  # what huggingface_hub takes for it
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline may be made of: no code comes with a model


def model_path(path: str) -> str:
    """What is loaded: a shipped model's folder, a local folder or file, or a hub id as it is.

    Call it on the node that loads the model: a shipped model's folder is that node's. Raises UserError for an
    unknown shipped model.
    """
    if not path.startswith(SHIPPED):
        return os.path.expanduser(path)
    found = [asset for name in ("model_index.json", "config.json") for asset in ASSETS.glob(f"*/{name}")]
    names = sorted(f"{SHIPPED}{asset.parent.name}" for asset in found)
    if path not in names:
        known = ", ".join(names) or "none is installed"
        raise UserError(f"model.path = {show(path, PATH)}: no such shipped model; allowed: {known}")
    return str(ASSETS / path.removeprefix(SHIPPED))


def model_mistakes(config: Config) -> Iterator[str]:
    """One line per reason why the model can't be searched; none for a hub id, which only the hub can tell."""
    try:
        path = model_path(config.model.path)
    except UserError as error:
        yield from error.lines
        return
    if config.model.kind == "masked":
        yield from masked_mistakes(config, path)
        return
    yield from _draft_mistakes(config.model.draft_vae)
    key = f"model.path = {show(config.model.path, PATH)}"
    if is_hub_id(path):
        return
    if not os.path.exists(path):
        yield f"{key}: no such folder; allowed: a pipeline folder, a hub id (org/name) or shipped:digits"
        return
    yield from _pipeline_mistakes(key, Path(path), config)


def check_there(path: str, where: str) -> None:
    """UserError for a stored path that counts from a folder which is not the current one: earlier releases stored them
    so. where: the file that holds it."""
    if path.startswith(SHIPPED) or is_hub_id(path) or os.path.exists(os.path.expanduser(path)):
        return
    start = f"{where}: model.path = {show(path, PATH)}"
    if os.path.isabs(os.path.expanduser(path)):
        raise UserError(f"{start}: is not there any more; allowed: the model that the run began with, in its place")
    raise UserError(
        f"{start}: counts from the folder where the run was begun; allowed: start there, or write the absolute path "
        "into that file"
    )


def check_hub_id(path: str) -> None:
    """UserError for a hub id that this machine, which is the only one, has not downloaded and can't."""
    if is_offline() and is_hub_id(path) and not _is_cached(path):
        raise UserError(not_from_the_hub(path, "offline, and not downloaded before"))


def is_offline() -> bool:
    """Whether this process is told not to ask the hub."""
    return any(os.environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def not_from_the_hub(path: str, why: str) -> str:
    """The line about a hub id that can't be loaded."""
    key = f"model.path = {show(path, PATH)}"
    return f"{key}: no folder here, and not to be had from the hub: {why}; allowed: a folder, or a hub id (org/name)"


def _is_cached(hub_id: str) -> bool:
    """Whether any revision of it was downloaded, where huggingface_hub keeps them (importing it takes a second)."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    snapshots = Path(os.path.expandvars(os.path.expanduser(cache)), f"models--{hub_id.replace('/', '--')}", "snapshots")
    return any(snapshots.glob("*/model_index.json"))


def _pipeline_mistakes(key: str, folder: Path, config: Config) -> Iterator[str]:
    if what := _no_pipeline(folder):
        yield f"{key}: {what}"
        return
    try:
        index = _read_json(folder / "model_index.json")
    except ValueError as error:
        yield f"{key}: is no diffusers pipeline: {error}"
        return
    if what := _other_pipeline(index):
        yield f"{key}: {what}"
        return
    mistakes = [*_index_mistakes(index), *_part_mistakes(folder, index, config.model.variant)]
    yield from (f"{key}: {mistake}" for mistake in mistakes)
    if not mistakes:
        yield from _scheduler_mistakes(key, folder, config)
        yield from _weight_mistakes(key, folder, config)


def model_parts(path: str) -> list[tuple[str, str]]:
    """(library, class) of each part of a local pipeline, as its index names them; none where that can't be read."""
    try:
        index = _read_json(Path(model_path(path)) / "model_index.json")
    except (UserError, ValueError):
        return []
    named = [value for value in index.values() if isinstance(value, list) and len(value) == 2]
    return [(library, name) for library, name in named if library in LIBRARIES and isinstance(name, str)]


def _no_pipeline(place: Path) -> str | None:
    """What a path is that holds a part of a pipeline, or all of it in another form."""
    if place.is_file() and place.suffix in (".safetensors", ".ckpt"):
        convert = f"StableDiffusionPipeline.from_single_file({place.name!r}).save_pretrained(FOLDER)"
        return f"a single file is not supported; supported: the folder of {SUPPORTED}; convert it with {convert}"
    if (place / "config.json").is_file() and not (place / "model_index.json").exists():
        try:
            name = _read_json(place / "config.json").get("_class_name")
        except ValueError:
            return None
        return f"a {show(str(name))} alone is not supported; supported: the folder of {SUPPORTED}" if name else None
    return None


def _other_pipeline(index: dict[str, Any]) -> str | None:
    """One line for a pipeline of another class; None where its parts are those that are needed."""
    name, parts = index.get("_class_name"), _parts(index)
    if name == "StableDiffusionPipeline" or parts.issuperset(PARTS) and not parts & OTHERS:
        return None
    return f"{show(str(name))} is not supported; supported: {SUPPORTED}"


def _parts(index: dict[str, Any]) -> set[str]:
    return {key for key, value in index.items() if isinstance(value, list) and value and value[0]}


def _draft_mistakes(path: str | None) -> Iterator[str]:
    """Of a draft VAE on this disk."""
    if path is None or is_hub_id(path):
        return
    key, folder = f"model.draft_vae = {show(path, PATH)}", Path(os.path.expanduser(path))
    try:
        kind = _read_json(folder / "config.json").get("_class_name")
    except ValueError as error:
        yield f"{key}: is no model's folder: {error}; allowed: an AutoencoderTiny (a folder or a hub id)"
        return
    if kind != "AutoencoderTiny":
        yield f"{key}: is a {show(str(kind))}; allowed: an AutoencoderTiny"
    elif not list(folder.glob("*.safetensors")):
        yield f"{key}: has no safetensors weights; allowed: a folder with them"


def _read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file."""
    where = f"{path.parent.name}/{path.name}"
    try:
        return parse_object(path.read_bytes())
    except OSError:
        raise ValueError(f"{where} is missing") from None
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None


def _index_mistakes(index: dict[str, Any]) -> Iterator[str]:
    """Is it a text-to-image pipeline that is made of the usual five parts, with no other network in it?"""
    name = index.get("_class_name")
    parts = _parts(index)
    if missing := [part for part in PARTS if part not in parts]:
        yield f"{name} has no {', '.join(missing)}; allowed: a StableDiffusionPipeline"
    for part in PARTS:
        library, kind = [*map(str, index[part]), "", ""][:2] if part in parts else (LIBRARIES[0], "")
        if library not in LIBRARIES or kind.startswith("Auto") and library == "transformers":
            rule = f"allowed: a class of {' or '.join(LIBRARIES)}; code that comes with a model is not run"
            yield f"its {part} is {show(f'{library}.{kind}')}; {rule}"
    others = sorted(parts & OTHERS)
    if others:
        yield f"{name} also needs {', '.join(others)}; allowed: a StableDiffusionPipeline"


def _part_mistakes(folder: Path, index: dict[str, Any], variant: str | None) -> Iterator[str]:
    for part in PARTS:
        if part in index and not (folder / part).is_dir():
            yield f"the folder {part} is missing"
    for part in NETWORKS:
        pattern = f"*.{variant}*" if variant else "*"
        weights = [file for file in (folder / part).glob(pattern) if file.suffix == ".safetensors"]
        if (folder / part).is_dir() and not weights:
            yield f"the folder {part} has no safetensors weights{f' of variant {variant}' if variant else ''}"
    try:
        inputs = _read_json(folder / "unet" / "config.json").get("in_channels", 4)
        latents = _read_json(folder / "vae" / "config.json").get("latent_channels", 4)
    except ValueError as error:
        if (folder / "unet").is_dir() and (folder / "vae").is_dir():
            yield str(error)
        return
    if inputs != latents:
        yield f"the unet takes {inputs} channels, the vae has {latents}; allowed: a text-to-image pipeline"


def _scheduler_mistakes(key: str, folder: Path, config: Config) -> Iterator[str]:
    try:
        scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    except ValueError as error:
        yield f"{key}: {error}"
        return
    name = str(scheduler.get("_class_name", "no scheduler"))
    if name not in CONVERTIBLE:
        known = ", ".join(sorted(CONVERTIBLE))
        yield f"{key}: can't be searched: no stochastic DDIM step for {show(name)}; allowed: {known}"
        return
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        yield f"{key}: can't be searched: prediction_type {show(prediction)}; allowed: {', '.join(PREDICTIONS)}"
    if scheduler.get("thresholding", False):
        yield f"{key}: can't be searched: the scheduler clips by thresholding; allowed: thresholding false"
    trained, steps = scheduler.get("num_train_timesteps", 1000), config.search.steps
    if type(trained) is not int or trained < 2:
        yield f"{key}: can't be searched: num_train_timesteps {show(trained)}; allowed: a whole number >= 2"
        return
    # with an offset, leading timesteps end at (steps - 1) * stride + offset, which has to stay below `trained`
    most = trained - 1 if scheduler.get("steps_offset", 0) and config.search.steps == trained else trained
    if steps > most:
        yield f"search.steps = {steps}: out of range; allowed: 2 to {most}, the model's training steps"


def _weight_mistakes(key: str, folder: Path, config: Config) -> Iterator[str]:
    """Files of weights that are not whole, and adapters' targets that the unet does not have."""
    names: list[str] = []
    for part in NETWORKS:
        for file in sorted((folder / part).glob("*.safetensors")):
            try:
                shapes = tensor_shapes(file)
            except (OSError, ValueError) as error:
                yield f"{key}: {part}/{show(file.name)} {error}"
                return
            names += shapes if part == "unet" else ()
    if config.mstep.parameters == "lora":
        layers = sorted({name.rpartition(".")[0] for name in names})
        wrong = [t for t in config.lora_targets if not any(f".{layer}".endswith(f".{t}") for layer in layers)]
        if wrong:
            known = sorted({layer.rpartition(".")[2] for layer in layers} - {str(i) for i in range(100)})
            usual = f"null ({', '.join(LORA_TARGETS['diffusers'])})"
            rule = f"allowed: {usual}, or the ends of layers' names, for instance {', '.join(known[:8])}"
            words = show(", ".join(wrong))
            yield f"mstep.lora.targets = {words}: the unet has no such layer; {rule}"
