"""Prompts that no text encoder reads to their end are told with the words that would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.checks.preflight import check
from dav_ray.config.families.pipelines.lumina_2 import SYSTEM
from dav_ray.config.families.pipelines.stable_diffusion_3 import StableDiffusion3
from dav_ray.config.families.prompt_lengths import Reader, length_mistakes
from dav_ray.config.recipe.load import load
from dav_ray.errors import UserError

EVERY = frozenset({"text_encoder", "text_encoder_2", "text_encoder_3"})


def words(folder: Path, limit: int | None = None) -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    own = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.enable_truncation(2)  # what its file says of that does not count
    folder.mkdir(parents=True)
    own.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit or int(1e30)}))


def lines(folder: Path, readers: tuple[Reader, ...], *texts: str, present: frozenset[str] = EVERY) -> list[str]:
    return list(length_mistakes(folder, readers, present, {f"prompts[{i}]": text for i, text in enumerate(texts)}))


def test_the_lost_words_are_told(tmp_path: Path) -> None:
    words(tmp_path / "tokenizer", 7)
    found = lines(
        tmp_path, (Reader(),), "one two three", "one two three four five", "one two  three four five Six, sëven"
    )
    assert found == [
        "prompts[2] = one two  three four five Six, sëven: 8 tokens, the text encoder reads 5; lost: Six, sëven; "
        "allowed: a shorter prompt, or model.long_prompts = cut"
    ]
    assert lines(tmp_path, (Reader(limit=11, reserved=3),), "a b c d e f g h") == []
    (line,) = lines(tmp_path, (Reader(limit=11, reserved=3, prefix="so: "),), "a b c d e f g h")
    assert "10 tokens, the text encoder reads 8; lost: g h; " in line  # its own words are read first
    many = [f"{i} b c d e f g" for i in range(13)]
    assert lines(tmp_path, (Reader(),), *many)[10:] == ["prompts: 3 more are too long; allowed: the same"]


def test_what_one_encoder_reads_is_not_lost(tmp_path: Path) -> None:
    words(tmp_path / "tokenizer", 7)
    words(tmp_path / "tokenizer_2", 9)
    both = Reader(), Reader("tokenizer_2", needs="text_encoder_2")
    text = "a b c d e f g"
    assert lines(tmp_path, both, text) == []
    assert len(lines(tmp_path, both, text, present=frozenset({"text_encoder"}))) == 1
    (line,) = lines(tmp_path, both, f"{text} h i")
    assert "the text encoder reads 7; lost: h i;" in line  # the one that reads more
    assert lines(tmp_path, (Reader("absent"),), text * 9) == []  # nothing is known


def test_sd_3_reads_by_t5_where_it_has_it(tmp_path: Path) -> None:
    for name, limit in (("tokenizer", 77), ("tokenizer_2", 77), ("tokenizer_3", None)):
        words(tmp_path / name, limit)
    text = " ".join(["cat"] * 255)
    assert lines(tmp_path, StableDiffusion3.readers, text) == []
    (line,) = lines(tmp_path, StableDiffusion3.readers, f"{text} dog")
    assert "256 tokens, the text encoder reads 255; lost: dog;" in line
    (line,) = lines(tmp_path, StableDiffusion3.readers, text, present=EVERY - {"text_encoder_3"})
    assert "255 tokens, the text encoder reads 75; lost: cat cat " in line


def test_lumina_2_s_own_words_are_those_of_its_pipeline() -> None:
    import inspect

    from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

    assert SYSTEM in inspect.getsource(Lumina2Pipeline.__init__)


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_is_refused_before_weights_are_loaded(fast: bool, tiny_folder: str, tmp_path: Path) -> None:
    """Ten letters are read here; older folders have a vocabulary and merges in the place of tokenizer.json."""
    import shutil

    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_folder, folder)
    if not fast:
        (folder / "tokenizer/tokenizer.json").unlink()
        shutil.copy(Path(tiny_folder).parent / "tokenizer-files/vocab.json", folder / "tokenizer")
        shutil.copy(Path(tiny_folder).parent / "tokenizer-files/merges.txt", folder / "tokenizer")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {{path: {folder}}}\nprompts: [cat, two dogs asleep]\nreward: {{kind: brightness}}\n")

    def told(*overrides: str) -> list[str]:
        try:
            check(load(str(recipe), ["search.steps=4", *overrides]).config, tracked=False)
        except UserError as error:
            return error.lines
        return []

    assert told() == [
        "prompts[1] = two dogs asleep: 13 tokens, the text encoder reads 10; lost: eep; allowed: a shorter prompt, or "
        "model.long_prompts = cut"
    ]
    assert told("prompts=[cat]") == []
    (line,) = told("prompts=[cat]", "model.negative_prompt=an ugly drawing")
    assert line.startswith("model.negative_prompt = an ugly drawing: 13 tokens, ")
    assert told("model.long_prompts=cut") == []
    kept: list[Any] = [load(str(recipe), overrides).config.identity() for overrides in ([], ["model.long_prompts=cut"])]
    assert kept[0] == kept[1]
