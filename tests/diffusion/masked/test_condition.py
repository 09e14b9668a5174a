"""Conditions of sequence models: the grammar, and one line for each way to miss it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.condition import GRAMMAR, Condition
from tests.support.deadlines import hung

DNA, LENGTH, CLASSES = Alphabet.of("dna"), 12, 3


def parse(text: str, classes: int = CLASSES) -> Condition:
    return Condition.parse(text, DNA, LENGTH, classes)


@pytest.mark.parametrize(
    ("text", "label", "fixed"),
    [
        ("", None, ()),
        ("   ", None, ()),
        ("class=0", 0, ()),
        ("class=2", 2, ()),
        ("fixed=0:A", None, ((0, 0),)),
        ("fixed=11:t", None, ((11, 3),)),
        ("fixed=5:GT,0:AC", None, ((0, 0), (1, 1), (5, 2), (6, 3))),
        ("fixed=0:ACGTACGTACGT class=1", 1, tuple((i, i % 4) for i in range(12))),
        ("  class=1\tfixed=2:A  fixed=3:C ", 1, ((2, 0), (3, 1))),
        ("fixed=2:AC,3:C,2:A", None, ((2, 0), (3, 1))),  # twice the same letter
        ("fixed=007:G", None, ((7, 2),)),
    ],
)
def test_grammar(text: str, label: int | None, fixed: tuple[tuple[int, int], ...]) -> None:
    assert parse(text) == Condition(label, fixed)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one", f"'one' is no condition; allowed: {GRAMMAR}"),
        ("klass=1", f"'klass=1' is no condition; allowed: {GRAMMAR}"),
        ("class", f"'class' is no condition; allowed: {GRAMMAR}"),
        ("class:1", f"'class:1' is no condition; allowed: {GRAMMAR}"),
        ("=1", f"'=1' is no condition; allowed: {GRAMMAR}"),
        ("class =1", f"'class' is no condition; allowed: {GRAMMAR}"),
        ("class=", "class=: unknown class; allowed: 0 to 2"),
        ("class=3", "class=3: unknown class; allowed: 0 to 2"),
        ("class=-1", "class=-1: unknown class; allowed: 0 to 2"),
        ("class=1.0", "class=1.0: unknown class; allowed: 0 to 2"),
        ("class=a", "class=a: unknown class; allowed: 0 to 2"),
        ("class=1 class=2", "class=2: a class is given already; allowed: one"),
        ("fixed=", f"fixed=: is no START:LETTERS; allowed: {GRAMMAR}"),
        ("fixed=AC", f"fixed=AC: is no START:LETTERS; allowed: {GRAMMAR}"),
        ("fixed=:AC", f"fixed=:AC: is no START:LETTERS; allowed: {GRAMMAR}"),
        ("fixed=3:", f"fixed=3:: is no START:LETTERS; allowed: {GRAMMAR}"),
        ("fixed=-1:A", f"fixed=-1:A: is no START:LETTERS; allowed: {GRAMMAR}"),
        ("fixed=1:A,", f"fixed=: is no START:LETTERS; allowed: {GRAMMAR}"),
        ("fixed=12:A", "fixed=12:A: ends at position 12; allowed: 0 to 11"),
        ("fixed=10:ACG", "fixed=10:ACG: ends at position 12; allowed: 0 to 11"),
        ("fixed=0:ACGTACGTACGTA", "fixed=0:ACGTACGTACGTA: ends at position 12; allowed: 0 to 11"),
        ("fixed=0:AXG", "fixed=0:AXG: letter 2: 'X'; allowed: ACGT"),
        ("fixed=0:A.", "fixed=0:A.: letter 2: '.'; allowed: ACGT"),
        ("fixed=1:AC,2:G", "fixed=2:G: position 2 is fixed to another letter already; allowed: one"),
        ("fixed=1:AC fixed=1:G", "fixed=1:G: position 1 is fixed to another letter already; allowed: one"),
    ],
)
def test_mistakes_are_one_line(text: str, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == line


def test_a_model_without_classes_takes_none() -> None:
    assert parse("fixed=0:A", classes=0).fixed == ((0, 0),)
    with pytest.raises(ValueError) as caught:
        parse("class=0", classes=0)
    assert str(caught.value) == "class=0: the model has no classes; allowed: no class"


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, LENGTH - 1), st.integers(0, 3)), st.none() | st.integers(0, CLASSES - 1))
def test_what_is_written_is_read(fixed: dict[int, int], label: int | None) -> None:
    words = [f"class={label}"] if label is not None else []
    words += ["fixed=" + ",".join(f"{place}:{DNA.letters[token]}" for place, token in fixed.items())] if fixed else []

    assert parse(" ".join(words)) == Condition(label, tuple(sorted(fixed.items())))


@settings(deadline=None)
@given(st.text(alphabet="clasfixed=:, 0123ACGTX²-", max_size=20))
def test_any_text_is_a_condition_or_a_mistake_of_one_line(text: str) -> None:
    try:
        found = parse(text)
    except ValueError as error:
        assert "; allowed: " in str(error) and "\n" not in str(error)
    else:
        assert all(0 <= place < LENGTH and 0 <= token < 4 for place, token in found.fixed)


def test_torch_is_not_needed() -> None:
    """The driver checks conditions before anything heavy is imported."""
    code = "import sys; import dav_ray.config.families.masked_checks; assert not {'torch', 'ray'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=hung(60)).returncode == 0
