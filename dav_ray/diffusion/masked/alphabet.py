"""Sequences over an alphabet: letters <-> tokens, and the files that they are read from and written to.

Tokens are the letters' places in the alphabet, 0..V-1; V is the mask. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dav_ray.errors import UserError

ALPHABETS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
COLUMN = "sequence"
FASTA = (".fa", ".fasta", ".fna", ".faa")
MOST_MISTAKES = 5  # of one file, in one error


class LetterError(ValueError):
    """A letter that is not in the alphabet; `place` is counted from 1."""

    def __init__(self, place: int, letter: str, allowed: str) -> None:
        super().__init__(f"letter {place}: {letter!r}; allowed: {allowed}")
        self.place, self.letter, self.allowed = place, letter, allowed


@dataclass(frozen=True)
class Alphabet:
    """Distinct characters; upper and lower case are the same where the alphabet has only one of them."""

    letters: str

    @classmethod
    def of(cls, name: str) -> Alphabet:
        """dna, rna, protein, or the letters themselves. ValueError where letters repeat, are fewer than two, or can't
        stand in a condition."""
        letters = ALPHABETS.get(name.lower(), name)
        distinct = len(set(letters)) == len(letters) and letters.isprintable()
        if not distinct or not 2 <= len(letters) <= 254 or set(letters) & set(" .:,=>"):
            raise ValueError("2 to 254 different letters, none of them blank or one of .:,=>")
        return cls(letters)

    @property
    def mask(self) -> int:
        return len(self.letters)

    def encode(self, text: str) -> np.ndarray:
        """[L] uint8. LetterError: the first letter that is not in the alphabet."""
        known = self._places()
        for place, letter in enumerate(text, start=1):
            if letter not in known:
                raise LetterError(place, letter, self.letters)
        return np.array([known[letter] for letter in text], np.uint8)

    def decode(self, tokens: np.ndarray) -> list[str]:
        """tokens [B, L] -> B texts; the mask is written as a dot."""
        table = np.array([*self.letters, "."])
        return ["".join(row) for row in table[np.asarray(tokens, np.int64)]]

    def _places(self) -> dict[str, int]:
        places = {letter: i for i, letter in enumerate(self.letters)}
        for letter, i in list(places.items()):
            places.setdefault(letter.swapcase(), i)
        return places


def read_sequences(path: str | Path, alphabet: Alphabet, column: str = COLUMN) -> np.ndarray:
    """Tokens [N, L] uint8 of a FASTA, CSV or Parquet file, in the file's order.

    UserError: one line per mistake, naming file, line and letter; mixed lengths; a file without sequences.
    """
    file = Path(path).expanduser()
    rows, lines, mistakes = [], [], []
    for line, text in entries(file, column):
        try:
            rows.append(alphabet.encode(text))
            lines.append(line)
        except LetterError as error:
            mistakes.append(f"{file}:{_where(file, line, error)}")
        if rows and len(rows[-1]) != len(rows[0]):
            mistakes.append(
                f"{file}:{line}: {len(rows[-1])} letters, the first sequence (line {lines[0]}) has {len(rows[0])}; "
                "allowed: one length"
            )
            rows.pop()
        if len(mistakes) == MOST_MISTAKES:
            mistakes.append(f"{file}: more mistakes may follow")
            break
    if mistakes:
        raise UserError(mistakes)
    if not rows or len(rows[0]) == 0:
        raise UserError(f"{file}: holds no sequences; allowed: FASTA, CSV or Parquet with at least one")
    return np.stack(rows)


def _where(file: Path, line: int, error: LetterError) -> str:
    """`LINE: letter N: ...` as a reader of the file counts: a FASTA record may go on over several lines."""
    place = error.place
    if file.suffix.lower() in FASTA:
        for text in file.read_text(encoding="utf-8-sig").splitlines()[line - 1 :]:
            if place <= len(text.strip()):
                break
            line, place = line + 1, place - len(text.strip())
    return f"{line}: {LetterError(place, error.letter, error.allowed)}"


def to_fasta(names: Sequence[str], texts: Sequence[str]) -> str:
    """One record per sequence, its letters on one line."""
    return "".join(f">{name}\n{text}\n" for name, text in zip(names, texts, strict=True))


def entries(file: Path, column: str) -> Iterator[tuple[int, str]]:
    """(line or row, from 1, and the sequence); UserError where the file can't be read as what its name says."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; allowed: FASTA ({', '.join(FASTA)}), .csv or .parquet")
    try:
        if file.suffix.lower() in FASTA:
            yield from _fasta(file)
        elif file.suffix.lower() == ".csv":
            yield from _csv(file, column)
        elif file.suffix.lower() == ".parquet":
            yield from _parquet(file, column)
        else:
            raise UserError(f"{file}: unknown kind; allowed: FASTA ({', '.join(FASTA)}), .csv or .parquet")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is no text; allowed: FASTA, CSV or Parquet as its ending says") from None
    except OSError as error:
        raise UserError(f"{file}: can't be read: {error.strerror}; allowed: a file that you may read") from None
    except csv.Error as error:
        raise UserError(f"{file}: can't be read as CSV: {error}") from None


def _fasta(file: Path) -> Iterator[tuple[int, str]]:
    start, parts = 0, []
    for number, raw in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        line = raw.strip()
        if line.startswith(">"):
            if start:
                yield start, "".join(parts)
            start, parts = number + 1, []
        elif line and not start:
            raise UserError(f"{file}:{number}: a FASTA file starts with a line '>name'")
        elif line:
            parts.append(line)
    if start:
        yield start, "".join(parts)


def _csv(file: Path, column: str) -> Iterator[tuple[int, str]]:
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig")))
    if column not in (reader.fieldnames or []):
        raise UserError(_no_column(file, column, reader.fieldnames or []))
    for row in reader:
        yield reader.line_num, (row[column] or "").strip()


def _parquet(file: Path, column: str) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        if column not in names:
            raise UserError(_no_column(file, column, names))
        values = pq.read_table(file, columns=[column]).column(column).cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{file}: can't be read as Parquet: {str(error).splitlines()[0]}") from None
    for number, value in enumerate(values, start=1):
        yield number, value or ""


def _no_column(file: Path, column: str, names: Sequence[str]) -> str:
    return f"{file}: has no column {column}; allowed: one of {', '.join(names) or 'none: the file is empty'}"
