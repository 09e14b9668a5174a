"""GC content and motif scores in closed form, on tokens and on their relaxation, with gradients."""

from __future__ import annotations

import math
import pickle
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.rewards import sequence
from dav_ray.rewards.sequence import GcContent, GcWindow, MotifScore, best_match, log_odds

# A C G T in each of four columns: TGAC, twice certain and twice at 6 to 1
COUNTS = torch.tensor([[0.0, 0, 6, 0], [0, 0, 1, 12], [0, 12, 1, 0], [12, 0, 4, 0]])


def tokens(*texts: str, alphabet: str = "dna") -> Tensor:
    return torch.stack([torch.from_numpy(Alphabet.of(alphabet).encode(text)).long() for text in texts])


def relaxed(ids: Tensor) -> Tensor:
    return F.one_hot(ids, 4).float()


def score(reward: Any, ids: Tensor) -> list[float]:
    """The reward of tokens, which is that of their one-hot relaxation."""
    values = reward(ids, [""] * len(ids))
    torch.testing.assert_close(reward(relaxed(ids), [""] * len(ids)), values)
    return values.tolist()


@pytest.fixture
def motif_score(monkeypatch: pytest.MonkeyPatch) -> Any:
    """MotifScore whose database has the motif M above, and a second one, N, that is a certain AAA."""
    known = {"M": COUNTS, "N": torch.tensor([[9.0, 9, 9], [0, 0, 0], [0, 0, 0], [0, 0, 0]])}
    monkeypatch.setattr(sequence, "_fetch", lambda motifs, release: {name: known[name] for name in motifs})
    return MotifScore


def test_gc_content_by_hand() -> None:
    ids = tokens("AATT", "ACGT", "GGCC", "ATTG")

    assert score(GcContent(), ids) == [0, 0.5, 1, 0.25]
    assert score(GcContent(target=0.5), ids) == [-0.5, 0, -0.5, -0.25]
    assert score(GcWindow(0.25, 0.5), ids) == [0, 1, 0, 1]
    assert score(GcWindow(), ids) == [0, 1, 0, 0]


def test_gc_content_counts_letters_wherever_they_stand_in_the_alphabet() -> None:
    for alphabet in ("rna", "GATC", "acgt", "ugca"):
        letters = Alphabet.of(alphabet).letters
        text = "".join(next(c for c in letters if c.upper() in bases) for bases in ("G", "C", "C", "UT", "A"))
        assert score(GcContent(alphabet=alphabet), tokens(text, alphabet=alphabet)) == pytest.approx([0.6])


def test_gc_content_gradient() -> None:
    """1 / L for G and C, nothing for A and T; with a target the sign of what is missing."""
    soft = relaxed(tokens("AATT", "GGGC")).requires_grad_()
    (plain,) = torch.autograd.grad(GcContent()(soft, ()).sum(), soft)
    (aimed,) = torch.autograd.grad(GcContent(0.5)(soft, ()).sum(), soft)

    assert plain[0, 2].tolist() == [0, 0.25, 0.25, 0]
    assert torch.equal(aimed, torch.stack([plain[0], -plain[1]]))


def test_log_odds_by_hand() -> None:
    """(n + 1/4) / (12 + 1) against 1/4; the columns' probabilities sum to one."""
    weights = log_odds(COUNTS)

    assert weights[3, 0].item() == pytest.approx(math.log2(12.25 / 13 * 4))
    assert weights[0, 0].item() == pytest.approx(math.log2(0.25 / 13 * 4))
    assert weights[0, 2].item() == pytest.approx(math.log2(6.25 / 13 * 4))
    torch.testing.assert_close((2**weights / 4).sum(dim=0), torch.ones(4))


def test_motif_score_by_hand(motif_score: Any) -> None:
    """1.0 wherever the consensus stands; one letter off costs what that column says; the reverse strand counts."""
    reward, forward = motif_score(["M"]), motif_score(["M"], both_strands=False)
    weights = log_odds(COUNTS)
    full = weights.amax(dim=0).sum()
    one_off = ((full - weights[0, 2] + weights[3, 2]) / full).item()
    ids = tokens("TGACCCCC", "CCTGACCC", "CCCCTGAC", "CCTGTCCC", "GGGTCAGG")

    assert score(reward, ids)[:3] == pytest.approx([1, 1, 1])
    assert score(forward, ids)[3] == pytest.approx(one_off)
    assert score(reward, ids)[4] == pytest.approx(1)
    assert score(forward, ids)[4] < 0.5


def test_motif_score_is_the_best_of_all_windows(motif_score: Any) -> None:
    """Slow loops over positions and strands; random sequences, mean over two motifs."""
    ids = torch.randint(4, (20, 15), generator=torch.Generator().manual_seed(0))
    expected = []
    for row in ids.tolist():
        best = []
        for weights in (log_odds(COUNTS), log_odds(torch.tensor([[9.0] * 3, [0] * 3, [0] * 3, [0] * 3]))):
            w = weights.shape[1]
            sums = [
                sum(weights[base, j].item() for j, base in enumerate(strand[start : start + w]))
                for strand in (row, [3 - base for base in reversed(row)])
                for start in range(len(row) - w + 1)
            ]
            best.append(max(sums) / weights.amax(dim=0).sum().item())
        expected.append(sum(best) / 2)

    assert score(motif_score(["M", "N"]), ids) == pytest.approx(expected, abs=1e-5)


def test_motif_score_of_the_reverse_complement_and_of_rna(motif_score: Any) -> None:
    ids = torch.randint(4, (20, 15), generator=torch.Generator().manual_seed(1))
    reward, forward = motif_score(["M", "N"]), motif_score(["M", "N"], both_strands=False)

    assert score(reward, (3 - ids).flip(1)) == pytest.approx(score(reward, ids))
    assert score(forward, (3 - ids).flip(1)) != pytest.approx(score(forward, ids))
    assert score(motif_score(["M", "N"], alphabet="rna"), ids) == score(reward, ids)
    assert score(motif_score(["M", "N"], alphabet="TGCA"), 3 - ids) == pytest.approx(score(reward, ids))
    assert pickle.loads(pickle.dumps(reward))(ids, ()).tolist() == reward(ids, ()).tolist()


def test_motif_score_gradient(motif_score: Any) -> None:
    """At the best window the motif's weights over the consensus' own, elsewhere nothing; as finite differences say."""
    weights = log_odds(COUNTS)
    soft = relaxed(tokens("CCTGACCC")).requires_grad_()
    (slope,) = torch.autograd.grad(motif_score(["M"], both_strands=False)(soft, ()).sum(), soft)
    expected = torch.zeros(8, 4)
    expected[2:6] = weights.T / weights.amax(dim=0).sum()
    torch.testing.assert_close(slope[0], expected)

    soft = torch.rand(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: best_match(x.transpose(1, 2), weights, True), soft)


def test_motif_score_floor(motif_score: Any) -> None:
    """What no window fits is below 0, and 0 for a product."""
    ids = tokens("GGGGGG", "AAAAAA")

    assert score(motif_score(["N"]), ids)[0] < 0
    assert score(motif_score(["N"], floor=0.0), ids) == pytest.approx([0, 1])


def test_motif_longer_than_the_sequence(motif_score: Any) -> None:
    with pytest.raises(ValueError, match="motif M has 4 columns and a sequence 3 letters"):
        motif_score(["M"])(tokens("ACG"), [""])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: GcContent(target=2), "target = 2; allowed: a share of G and C in [0, 1], or none to maximise it"),
        (lambda: GcWindow(0.6, 0.4), "low = 0.6, high = 0.4; allowed: 0 <= low <= high <= 1"),
        (lambda: GcContent(alphabet="protein"), "alphabet = protein; allowed: dna, rna, or the four bases in another"),
        (lambda: MotifScore([]), "motifs = []; allowed: a list of at least one JASPAR id or name"),
        (lambda: MotifScore("CTCF"), "motifs = 'CTCF'; allowed: a list of at least one"),  # type: ignore[arg-type]
        (lambda: GcContent()(torch.zeros(2, 5, 3), ()), "samples of shape [2, 5, 3]; allowed: tokens [B, L] or relax"),
        (lambda: GcContent()(torch.zeros(2, 5), ()), "samples of shape [2, 5]; allowed: tokens [B, L] or relaxation"),
    ],
)
def test_mistakes(make: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(line)


def test_without_pyjaspar_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyjaspar", None)
    with pytest.raises(ImportError, match=r"motif_score needs JASPAR's motifs: pip install pyjaspar"):
        MotifScore(["MA0139.2"])


def test_motifs_from_jaspar() -> None:
    """CTCF's and YY1's consensus score 1.0; what is ambiguous or unknown is named."""
    pytest.importorskip("pyjaspar")
    reward = MotifScore(["MA0139.2", "Yy1"], release="JASPAR2024")
    for name, weights in reward.weights.items():
        consensus = weights.argmax(dim=0)
        padded = torch.cat([torch.zeros(3, dtype=torch.int64), consensus, torch.zeros(3, dtype=torch.int64)])
        assert score(MotifScore([name]), padded[None]) == pytest.approx([1.0])
    assert "".join("ACGT"[i] for i in reward.weights["Yy1"].argmax(dim=0)) == "CAAAATGG"

    with pytest.raises(ValueError) as caught:
        MotifScore(["CTCF", "MA9999", "nonesuch"])
    assert str(caught.value).startswith("motifs = CTCF (is MA0139.2, ")
    assert "choose one), MA9999 (unknown), nonesuch (unknown); allowed: ids or names of JASPAR2024" in str(caught.value)
    with pytest.raises(ValueError, match="release = JASPAR1999; allowed: .*JASPAR2024"):
        MotifScore(["MA0139.2"], release="JASPAR1999")
