"""Prompts that are longer than what text encoders read, and the words that are lost. Loads tokenizers, no weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dav_ray.redact import show

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
MOST_LINES = 10  # of prompts that are named
NO_LIMIT = 1_000_000  # tokenizers without one have 10^30


@dataclass(frozen=True)
class Reader:
    """A text encoder of a pipeline, as far as its tokenizer tells.

    part: the tokenizer's folder; limit: tokens that the pipeline hands over, None: what the tokenizer says itself;
    reserved: those of them that are no words of the prompt; prefix: the pipeline's own words before the prompt; needs:
    the encoder, without which nobody reads.
    """

    part: str = "tokenizer"
    limit: int | None = None
    reserved: int = 2
    prefix: str = ""
    needs: str = "text_encoder"


@dataclass(frozen=True)
class _Lost:
    tokens: int  # that the prompt has
    most: int  # that are read
    words: str


def length_mistakes(
    folder: Path, readers: tuple[Reader, ...], present: frozenset[str], texts: Mapping[str, str]
) -> Iterator[str]:
    """One line per text of which every encoder loses words; none where a tokenizer can't be read. present: the
    pipeline's parts; texts: by key."""
    lost: dict[str, _Lost] = {}
    left = dict(texts)
    for reader in readers:
        if reader.needs not in present:
            continue
        found = _lost_by(folder, reader, left)
        if not found:
            return
        lost = {key: min(lost.get(key, one), one, key=lambda loss: len(loss.words)) for key, one in found.items()}
        left = {key: texts[key] for key in lost}
    for key, loss in list(lost.items())[:MOST_LINES]:
        words = f"{loss.tokens} tokens, the text encoder reads {loss.most}; lost: {show(loss.words, 200)}"
        yield f"{key} = {show(texts[key])}: {words}; allowed: a shorter prompt, or model.long_prompts = cut"
    if len(lost) > MOST_LINES:
        yield f"prompts: {len(lost) - MOST_LINES:,} more are too long; allowed: the same"


def _lost_by(folder: Path, reader: Reader, texts: Mapping[str, str]) -> dict[str, _Lost]:
    """Of the texts those that lose words here."""
    most = _limit(folder / reader.part, reader.limit)
    most = most and most - reader.reserved
    if not most:
        return {}
    # a token has at least one letter, if that is of ASCII: no tokenizer is needed for most texts
    long = {key: text for key, text in texts.items() if not text.isascii() or len(reader.prefix + text) >= most}
    tokenizer = _tokenizer(folder / reader.part) if long else None
    if tokenizer is None:
        return {}
    whole = [reader.prefix + text for text in long.values()]
    found: dict[str, _Lost] = {}
    for key, text, encoded in zip(long, whole, tokenizer.encode_batch(whole, add_special_tokens=False), strict=True):
        tokens = len(encoded.ids)
        if tokens > most and (words := text[encoded.offsets[most - 1][1] :].strip()):
            found[key] = _Lost(tokens, most, words)
    return found


def _limit(folder: Path, limit: int | None) -> int | None:
    """None: there is none, or it is not known."""
    if limit is not None:
        return limit
    with contextlib.suppress(OSError, ValueError):
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_max_length")
        return said if isinstance(said, int) and said < NO_LIMIT else None
    return None


def _tokenizer(folder: Path) -> Any:
    """Of the library `tokenizers`; None where the folder holds none that can be read."""
    if (folder / FILE).is_file():
        from tokenizers import Tokenizer

        try:
            found: Any = Tokenizer.from_file(str(folder / FILE))
        except Exception:  # the library raises nothing narrower; who loads the pipeline says what is wrong
            return None
        found.no_truncation()
        found.no_padding()
        return found
    older = folder / "vocab.json", folder / "merges.txt"
    if not all(file.is_file() for file in older):
        return None
    from transformers import CLIPTokenizer  # the only one of these pipelines that comes in such files

    with contextlib.suppress(OSError, ValueError):
        return CLIPTokenizer(*map(str, older)).backend_tokenizer
    return None
