"""jobs/gpu_hour: spans, resuming, verdicts; each step on tiny networks on the CPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.diffusion.device import quiet
from jobs.gpu_hour import cards, claims, models, study
from jobs.gpu_hour.models import SD15, TINY
from jobs.gpu_hour.record import Record
from jobs.gpu_hour.setting import Setting, chunk_of
from jobs.gpu_hour.spans import Spans, covered
from jobs.gpu_hour.steps import same_chunk, timeline, training
from jobs.gpu_hour.steps.base import Step
from jobs.gpu_hour.steps.roofline import UNET, Case, Networks
from jobs.performance.parts.search import search
from jobs.performance.workloads import Workload
from jobs.tables import Table
from tests.support.deadlines import hung
from tests.support.places import JOBS, ROOT

WORDS = ("--tiny", "--device", "cpu", "--out")
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    quiet()
    torch.set_num_threads(1)
    return Setting(tmp_path_factory.mktemp("hour"), "cpu", tiny=True)


# -- spans and the record ---------------------------------------------------------------------------------------------


def test_spans_that_overlap_count_once() -> None:
    spans = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("a", 5.0, 6.0), ("c", 0.0, 9.0)]
    assert covered(spans, ["a"]) == 3 and covered(spans, ["a", "b"]) == 4 and covered(spans, ["d"]) == 0


def test_spans_are_named_and_follow_each_other() -> None:
    spans = Spans("cpu")
    with spans.span("outer"):
        assert spans.timed("inner", lambda x: x + 1)(2) == 3
    (inner, outer) = spans.read()
    assert (inner[0], outer[0]) == ("inner", "outer") and outer[1] <= inner[1] <= inner[2] <= outer[2]
    spans.begin()
    assert spans.read() == []


def test_a_chunks_time_is_told_by_what_worked() -> None:
    """Ten seconds: 4 of network, 2 of decoding, 1 of these in the reward's time; asking takes 4, the reward 2."""
    spans = [
        ("network", 0.0, 4.0),
        ("scores", 4.0, 8.0),
        ("reward", 5.0, 7.0),
        ("decoder", 6.0, 8.0),
        ("chunk", 0.0, 10.0),
    ]
    found = timeline.summary(spans)
    assert found["seconds"] == 10 and found["busy"] == pytest.approx(0.6)
    assert found["copies_share"] == pytest.approx(0.1)  # from 4 to 5: neither reward nor decoder
    assert (found["network_share"], found["reward_share"]) == (pytest.approx(0.4), pytest.approx(0.2))


def counting(calls: list[str], fail: str = "") -> Step:
    import contextlib

    @contextlib.contextmanager
    def opened(setting: Setting) -> Any:
        def measure(case: str) -> dict[str, Any]:
            calls.append(case)
            if case == "oom":
                raise torch.OutOfMemoryError
            if case == fail:
                raise ValueError("a word")
            return {"x": 1.0}

        yield measure

    return Step("counting", lambda setting: ["a", "oom", "b"], opened, lambda results: Table("", ("x",), ()))


def test_what_was_measured_is_not_measured_again(setting: Setting, tmp_path: Path) -> None:
    place = Setting(tmp_path, "cpu", tiny=True)
    calls: list[str] = []
    step = counting(calls, fail="b")
    record = Record(tmp_path / "gpu_hour.json")
    record.begin("counting", "a")  # a process that ended in the middle of it
    study.work(step, place, 100)
    study.work(step, place, 100)

    assert calls == ["oom", "b"] and study.left(step, place, Record(tmp_path / "gpu_hour.json")) == []
    cases = json.loads((tmp_path / "gpu_hour.json").read_text())["steps"]["counting"]
    assert cases["a"] == {"begun": True}
    assert cases["oom"]["out_of_memory"] is True and cases["b"]["error"] == "ValueError: a word"
    again = Record(tmp_path / "gpu_hour.json")
    assert [case for case, _ in again.results("counting")] == ["oom"]
    again.forget("counting")
    assert study.left(step, place, Record(tmp_path / "gpu_hour.json")) == ["a", "oom", "b"]


def test_no_case_is_begun_that_would_end_too_late(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 1.0, 1.0, 41.0, 41.0, 42.0, 42.0, 42.0])  # the first case takes 40 s
    calls: list[str] = []
    place = Setting(tmp_path, "cpu", tiny=True)
    place.config()
    monkeypatch.setattr(study.time, "monotonic", lambda: next(clock))
    study.work(counting(calls), place, 60)
    assert calls == ["a"]


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert study.main([]) == 2
    assert "torch sees no CUDA GPU" in capsys.readouterr().err


# -- cards and claims -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165),
        ("a card of next year", None),
    ],
)
def test_cards_are_known_by_name(name: str, half: float | None) -> None:
    found = cards.card(name)
    assert (found.half if found else None) == half
    assert cards.share(name, 100, "bfloat16") == (None if half is None else pytest.approx(100 / half))


def measured(tmp_path: Path, name: str = "NVIDIA A100-SXM4-80GB", **steps: dict[str, Any]) -> claims.Measured:
    record = Record(tmp_path / "made.json")
    record.about({"card": name, "real": True})
    for step, cases in steps.items():
        for case, result in cases.items():
            record.put(step.replace("_", "-"), case, result)
    return claims.Measured(record)


def of(key: str, words: str) -> claims.Claim:
    return next(claim for claim in claims.CLAIMS if claim.key == key and words in claim.words)


def test_verdicts_follow_from_the_numbers(tmp_path: Path) -> None:
    waits, goal, kept = of("S1", "busy for less"), of("goal", "UNet"), of("B6", "keeps 33")
    busy = {"JPEG, parts 1": {"busy": 0.57}}
    assert claims.verdict(waits, measured(tmp_path, timeline=busy)) == ("confirmed", "57% busy")
    assert claims.verdict(waits, measured(tmp_path, timeline={"JPEG, parts 1": {"busy": 0.9}}))[0] == "refuted"
    assert claims.verdict(kept, measured(tmp_path)) == ("not measured", "mstep: off, 16")
    failed = measured(tmp_path, mstep={"off, 16": {"error": "ValueError"}})
    assert claims.verdict(kept, failed)[0] == "not measured"

    compiled = {"UNet, merged, compiled, 64": {"tflops": 150.0}, "UNet, merged, compiled, 16": {"tflops": 90.0}}
    assert claims.verdict(goal, measured(tmp_path, unet_compiled=compiled)) == ("confirmed", "150 of 140 TFLOPS")
    other = measured(tmp_path, "NVIDIA H100 80GB HBM3", unet_compiled=compiled)
    assert claims.verdict(goal, other) == ("refuted", "150 of 350 TFLOPS")
    unknown = measured(tmp_path, "another card", unet_compiled=compiled)
    assert claims.verdict(goal, unknown) == ("not measured", "nothing is said of another card")


def test_adapters_that_cost_nothing_refute_the_claim(tmp_path: Path) -> None:
    claim = of("S3", "Unmerged")
    for plain, said in ((115.0, "confirmed"), (104.0, "refuted")):
        unet = {f"UNet, {form}, NCHW, 64": {"ms": ms} for form, ms in (("merged", 100.0), ("float32", plain))}
        assert claims.verdict(claim, measured(tmp_path, unet=unet))[0] == said


def test_checkpointing_that_alone_fits_confirms_the_claim(tmp_path: Path) -> None:
    claim = of("B6", "Checkpointing")
    cases = {"off, 16": {"out_of_memory": True}, "on, 16": {"peak_gb": 9.0, "ms": 80.0}}
    assert claims.verdict(claim, measured(tmp_path, mstep=cases))[0] == "confirmed"
    cases["off, 16"] = {"peak_gb": 10.0, "ms": 70.0}
    assert claims.verdict(claim, measured(tmp_path, mstep=cases)) == (
        "refuted",
        "90% of the memory, 1.14 times the time",
    )


def test_only_the_count_of_operations_is_claimed_of_a_cpu(tmp_path: Path) -> None:
    record = Record(tmp_path / "cpu.json")
    record.about({"card": "cpu", "real": False})
    found = claims.table(record)
    assert [row[2] for row in found.rows] == ["confirmed", *["not measured"] * (len(claims.CLAIMS) - 1)]
    assert found.rows[0][3] == "0.803 and 2.515 TFLOP"


def test_the_tokenizer_gives_as_many_tokens_as_clip(tmp_path: Path) -> None:
    """What cross-attention costs depends on it; it is stored with the pipeline."""
    from transformers import CLIPTokenizer

    sizes = dataclasses.replace(TINY, length=77)
    models.pipeline(sizes, "cpu", torch.float32).tokenizer.save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("a cat", padding="max_length", max_length=tokenizer.model_max_length).input_ids
    assert len(ids) == SD15.length == 77


# -- the steps, on tiny networks --------------------------------------------------------------------------------------


def test_every_form_of_a_network_is_timed(setting: Setting) -> None:
    made = Networks(setting)
    for name in ("UNet, merged, NCHW, 2", "UNet, float32, channels-last, 2", "decoder, merged, compiled, 2"):
        found = made.measure(name)
        assert found["tflops"] == pytest.approx(made.flops * 2 / found["ms"] / 1e9)
        assert found["share"] is None and Case.of(name).name == name
    assert len(UNET.cases(Setting(setting.out, "cuda", tiny=False))) == 3 * 2 * 5


def test_the_timeline_finds_what_the_search_finds(setting: Setting) -> None:
    """The instruments change nothing, and the spans cover nearly all of the time."""
    line = timeline.Timeline(setting)
    found = line.measure("JPEG, parts 1")
    assert found["images"] == 2 * 2 * 4 and found["evaluations"] == 2 * (1 + 3 * 2)
    shares = [found[f"{name}_share"] for name in timeline.SEEN]
    assert 0.5 < sum(shares) <= 1.001 and 0 < found["busy"] <= 1

    config = setting.config()
    scorer, chunk = setting.scorer(config), chunk_of(config)
    own = line._search(config, scorer, chunk)
    plain = search(Workload("", config, setting.diffusion(config), scorer, chunk, "cpu"))
    assert torch.equal(own.states, plain.states) and torch.equal(own.reward, plain.reward)


def test_the_m_step_is_measured_against_the_doctor(setting: Setting) -> None:
    found = training.Training(setting).measure("off, 4")
    assert found["peak_gb"] is None and found["ms"] > 0 and 0 < found["doctor_gb"] < 0.1


def test_a_chunk_that_is_searched_again_is_the_same_bits(setting: Setting) -> None:
    with same_chunk.opened(setting) as measure:
        half, full = measure("bfloat16"), measure("float32")
    assert half["same_bits"] and full["same_bits"] and half["sha256"] != full["sha256"]
    assert full["choices_moved"] == 0 and 0 < half["choices_moved"] < 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_hour_on_tiny_networks(tmp_path: Path) -> None:
    """By the name in the list of studies: every case has a result, and a second call measures nothing."""
    command = [sys.executable, str(JOBS / "gpu_hour.py"), *WORDS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=hung(850))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_hour.json").read_text())["steps"]
    place = Setting(tmp_path, "cpu", tiny=True)
    for name, step in study.STEPS.items():
        assert list(found[name]) == list(step.cases(place))
        assert not [case for case, result in found[name].items() if {"begun", "error"} & result.keys()], done.stderr
    assert "**Claims**" in done.stdout and (tmp_path / "gpu_hour.md").read_text() in done.stdout
    assert all(found["pipeline"][case]["samples_per_s"] > 0 for case in ("JPEG, parts 1", "CLIP, parts 1"))

    before = (tmp_path / "gpu_hour.json").stat().st_mtime_ns, found
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=hung(200))
    assert again.returncode == 0 and again.stdout == done.stdout
    assert json.loads((tmp_path / "gpu_hour.json").read_text())["steps"] == before[1]
