"""Letters, tokens and the files that hold them: every bad file is named with line and letter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dav_ray.diffusion.masked.alphabet import ALPHABETS, FASTA, MOST_MISTAKES, Alphabet, read_sequences, to_fasta
from dav_ray.errors import UserError

DNA = Alphabet.of("dna")


def written(path: Path, content: str | bytes | dict[str, object]) -> Path:
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- alphabets ----


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("dna", "ACGT"),
        ("DNA", "ACGT"),
        ("rna", "ACGU"),
        ("protein", "ACDEFGHIKLMNPQRSTVWY"),
        ("TGCA", "TGCA"),
        ("01", "01"),
        ("αβγ", "αβγ"),
        ("aA", "aA"),
    ],
)
def test_alphabets(name: str, letters: str) -> None:
    alphabet = Alphabet.of(name)
    assert (alphabet.letters, alphabet.mask) == (letters, len(letters))
    assert alphabet.encode(letters).tolist() == list(range(len(letters)))
    assert Alphabet.of(alphabet.letters) == alphabet


@pytest.mark.parametrize("name", ["", "A", "AA", "ACGA", "AC.", "AC:", "AC,", "A C", "AC=", "AC\n", "AC\t"])
def test_letters_that_are_no_alphabet(name: str) -> None:
    with pytest.raises(ValueError, match="^2 to 254 different letters, none of them blank or one of .:,=>$"):
        Alphabet.of(name)


def test_the_largest_alphabet_leaves_room_for_the_mask() -> None:
    letters = "".join(chr(0x4E00 + i) for i in range(255))
    assert Alphabet.of(letters[:254]).encode(letters[253]).tolist() == [253]
    with pytest.raises(ValueError, match="^2 to 254 "):
        Alphabet.of(letters)


def test_case_matters_where_the_alphabet_has_both() -> None:
    assert DNA.encode("acgTN"[:4]).tolist() == [0, 1, 2, 3]
    assert Alphabet.of("ab").encode("ABab").tolist() == [0, 1, 0, 1]
    assert Alphabet.of("aAb").encode("aAbB").tolist() == [0, 1, 2, 2]


def test_masks_are_written_as_dots() -> None:
    assert DNA.decode(np.array([[0, 4, 3], [4, 4, 4]])) == ["A.T", "..."]
    with pytest.raises(ValueError, match=r"^letter 2: '\.'; allowed: ACGT$"):
        DNA.encode("A.T")


@settings(deadline=None)
@given(st.sampled_from([*ALPHABETS, "01", "xyZ"]), st.data())
def test_what_is_decoded_is_encoded(name: str, data: st.DataObject) -> None:
    alphabet = Alphabet.of(name)
    texts = data.draw(st.lists(st.text(alphabet.letters, min_size=3, max_size=3), min_size=1))
    tokens = np.stack([alphabet.encode(text) for text in texts])

    assert tokens.dtype == np.uint8 and tokens.shape == (len(texts), 3)
    assert alphabet.decode(tokens) == texts
    assert np.array_equal(alphabet.encode(texts[0].swapcase()), tokens[0])


# ---- files ----


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.text("ACGT", min_size=4, max_size=4), min_size=1, max_size=8))
def test_files_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder, expected = tmp_path_factory.mktemp("files"), np.stack([DNA.encode(text) for text in texts])
    for file, content in (
        ("a.fasta", to_fasta([f"sample-{i}" for i in range(len(texts))], texts)),
        ("a.csv", "id,sequence\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts))),
        ("a.parquet", {"id": list(range(len(texts))), "sequence": texts}),
    ):
        assert np.array_equal(read_sequences(written(folder / file, content), DNA), expected)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"a{ending}", ">one\nACGT\n>two\nTTTT\n") for ending in (*FASTA, ".FA")),
        ("wrapped.fa", "\n>one comment, with: anything\nAC\n\n  GT \n>\ntt\nTT"),
        ("windows.fa", ">one\r\nACGT\r\n>two\r\nTTTT\r\n"),
        ("bom.fa", "\ufeff>one\nACGT\n>two\nTTTT\n"),
        ("a.csv", "sequence\nACGT\nTTTT\n"),
        ("bom.csv", "\ufeffsequence,score\nACGT,1\nTTTT,2\n"),
        ("quoted.csv", 'name,sequence\n"a, b","ACGT"\n"c\nd", TTTT \n'),
        ("windows.csv", "sequence\r\nACGT\r\nTTTT\r\n"),
        ("A.CSV", "x,sequence\n1,ACGT\n2,TTTT\n"),
        ("a.parquet", {"sequence": ["ACGT", "TTTT"]}),
        ("large.parquet", {"sequence": pa.array(["ACGT", "TTTT"], pa.large_string())}),
        ("coded.parquet", {"sequence": pa.array(["ACGT", "TTTT"]).dictionary_encode()}),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, content: str | dict[str, object]) -> None:
    found = read_sequences(written(tmp_path / name, content), DNA)
    assert found.dtype == np.uint8 and found.tolist() == [[0, 1, 2, 3], [3, 3, 3, 3]]


def test_another_column_and_alphabet(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "sequence,cut\nnothing,ACU\nof,GGG\n")
    assert read_sequences(path, Alphabet.of("rna"), column="cut").tolist() == [[0, 1, 3], [2, 2, 2]]


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "a.fa", ">x\nA\n")
    assert read_sequences("~/a.fa", DNA).tolist() == [[0]]


NOT_OF_ONE_LENGTH = "letters, the first sequence (line {}) has 4; allowed: one length"
EMPTY = "holds no sequences; allowed: FASTA, CSV or Parquet with at least one"
KINDS = "FASTA (.fa, .fasta, .fna, .faa), .csv or .parquet"


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.fa", ">one\nACXT\n", [":2: letter 3: 'X'; allowed: ACGT"]),
        ("a.fa", ">one\nACGT\n>two\nNCGT\n", [":4: letter 1: 'N'; allowed: ACGT"]),
        ("a.fa", ">one\nACGT\n>two\nACGU\n>three\nAC-T\n", [
            ":4: letter 4: 'U'; allowed: ACGT",
            ":6: letter 3: '-'; allowed: ACGT",
        ]),
        ("a.fa", ">one\nAC T\n", [":2: letter 3: ' '; allowed: ACGT"]),
        ("a.fa", ">one\nACGT\n>two\nAC\nG*\n", [":5: letter 2: '*'; allowed: ACGT"]),
        ("a.fa", ">one\nACGT\n>two\nACG\n", [f":4: 3 {NOT_OF_ONE_LENGTH.format(2)}"]),
        ("a.fa", ">one\nACGT\n>two\n>three\nACGT\n", [f":4: 0 {NOT_OF_ONE_LENGTH.format(2)}"]),
        ("a.fa", "ACGT\n", [":1: a FASTA file starts with a line '>name'"]),
        ("a.fa", "\n\n;comment\n>one\nACGT\n", [":3: a FASTA file starts with a line '>name'"]),
        ("a.fa", "", [f": {EMPTY}"]),
        ("a.fa", "\n \n", [f": {EMPTY}"]),
        ("a.fa", ">one\n", [f": {EMPTY}"]),
        ("a.fa", ">one\n>two\n", [f": {EMPTY}"]),
        ("a.fa", b">one\n\xff\xfe\n", [": is no text; allowed: FASTA, CSV or Parquet as its ending says"]),
        ("a.csv", "sequence\nACGT\nACNT\n", [":3: letter 3: 'N'; allowed: ACGT"]),
        ("a.csv", "sequence,x\nACGT,1\nAC,2\nACG,3\n", [
            f":3: 2 {NOT_OF_ONE_LENGTH.format(2)}",
            f":4: 3 {NOT_OF_ONE_LENGTH.format(2)}",
        ]),
        ("a.csv", "sequence\nACGT\nAC\nANGT\n", [
            f":3: 2 {NOT_OF_ONE_LENGTH.format(2)}",
            ":4: letter 2: 'N'; allowed: ACGT",
        ]),
        ("a.csv", 'x,sequence\n"1\n2",ACGT\n3,ACZT\n', [":4: letter 3: 'Z'; allowed: ACGT"]),
        ("a.csv", "x,sequence\n1,ACGT\n2\n", [f":3: 0 {NOT_OF_ONE_LENGTH.format(2)}"]),
        ("a.csv", "seq,score\nACGT,1\n", [": has no column sequence; allowed: one of seq, score"]),
        ("a.csv", "", [": has no column sequence; allowed: one of none: the file is empty"]),
        ("a.csv", "sequence\n", [f": {EMPTY}"]),
        ("a.csv", b"sequence\n\xff\n", [": is no text; allowed: FASTA, CSV or Parquet as its ending says"]),
        ("a.csv", "sequence\n" + "A" * 200_000 + "\n", [": can't be read as CSV: field larger than field limit"]),
        ("a.parquet", {"sequence": ["ACGT", "AC4T"]}, [":2: letter 3: '4'; allowed: ACGT"]),
        ("a.parquet", {"sequence": ["ACGT", None]}, [f":2: 0 {NOT_OF_ONE_LENGTH.format(1)}"]),
        ("a.parquet", {"sequence": [12, 34]}, [":1: letter 1: '1'; allowed: ACGT", ":2: letter 1: '3'; allowed: ACGT"]),
        ("a.parquet", {"dna": ["ACGT"], "x": [1]}, [": has no column sequence; allowed: one of dna, x"]),
        ("a.parquet", {"sequence": pa.array([], pa.string())}, [f": {EMPTY}"]),
        ("a.parquet", {"sequence": [[1, 2]]}, [": can't be read as Parquet: Unsupported cast from list<"]),
        ("a.parquet", "sequence\nACGT\n", [": can't be read as Parquet: Parquet magic bytes not found"]),
        ("a.parquet", b"", [": can't be read as Parquet: Parquet file size is 0 bytes"]),
        ("a.txt", "ACGT\n", [f": unknown kind; allowed: {KINDS}"]),
        ("a", "ACGT\n", [f": unknown kind; allowed: {KINDS}"]),
        ("a.fa.gz", b"\x1f\x8b", [f": unknown kind; allowed: {KINDS}"]),
    ],
)  # fmt: skip
def test_bad_files(tmp_path: Path, name: str, content: str | bytes | dict[str, object], lines: list[str]) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(UserError) as caught:
        read_sequences(path, DNA)
    found = caught.value.lines

    assert len(found) == len(lines)
    assert all("\n" not in line and line.startswith(f"{path}{start}") for line, start in zip(found, lines, strict=True))


def test_the_first_sequence_decides_the_length_even_after_a_mistake(tmp_path: Path) -> None:
    path = written(tmp_path / "a.fa", ">one\nNNN\n>two\nACGT\n>three\nAC\n>four\nTTTT\n")
    with pytest.raises(UserError) as caught:
        read_sequences(path, DNA)
    assert caught.value.lines == [
        f"{path}:2: letter 1: 'N'; allowed: ACGT",
        f"{path}:6: 2 letters, the first sequence (line 4) has 4; allowed: one length",
    ]


def test_a_file_full_of_mistakes_is_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "sequence\n" + "N\n" * 100)
    with pytest.raises(UserError) as caught:
        read_sequences(path, DNA)
    assert caught.value.lines == [
        *(f"{path}:{line}: letter 1: 'N'; allowed: ACGT" for line in range(2, 2 + MOST_MISTAKES)),
        f"{path}: more mistakes may follow",
    ]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    """Each of these breaks in another place of the reader: all are mistakes of one line."""
    texts = ["".join(row) for row in np.array([*"ACGT"])[np.random.default_rng(0).integers(0, 4, (100, 20))]]
    for codec in ("snappy", "zstd", "none"):
        pq.write_table(pa.table({"sequence": texts}), tmp_path / "a.parquet", use_dictionary=False, compression=codec)
        whole = (tmp_path / "a.parquet").read_bytes()
        for start in range(0, len(whole) - 8, len(whole) // 20):
            path = written(tmp_path / "b.parquet", whole[:start] + b"\xff" * 8 + whole[start + 8 :])
            try:
                read_sequences(path, DNA)
            except UserError as error:
                assert all(line.startswith(f"{path}:") and "None" not in line for line in error.lines)


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.fa", tmp_path):
        with pytest.raises(UserError) as caught:
            read_sequences(path, DNA)
        assert caught.value.lines == [f"{path}: no such file; allowed: {KINDS}"]


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's rights are pretended away: the tests may run as root."""
    for name in ("a.fa", "a.csv"):
        path = written(tmp_path / name, ">x\nA\n")

        def refuse(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_text", refuse)
        with pytest.raises(UserError) as caught:
            read_sequences(path, DNA)
        assert caught.value.lines == [f"{path}: can't be read: Permission denied; allowed: a file that you may read"]
