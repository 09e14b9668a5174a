"""What is said of the program on a GPU, and what the measurements say to it.

A claim is a sentence with a number. Its verdict is `confirmed`, `refuted`, or `not measured` where a case that it needs
is missing, failed, or was measured on another device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dav_ray.config.families.published import SD1, TEXT_LENGTH
from jobs.gpu_hour import flops
from jobs.gpu_hour.cards import card
from jobs.gpu_hour.record import Record, Result
from jobs.tables import Table

Verdict = tuple[bool, str]  # does it hold, and the numbers
# TFLOPS that bare, compiled networks are to reach, and of the M-step's transitions
TARGETS = {
    "A100-SXM4-80GB": (140.0, 125.0),
    "H100 80GB HBM3": (350.0, 300.0),
    "H200": (350.0, 300.0),
    "L4": (48.0, 48.0),
}
GUIDED_TRANSITION = 6 * 0.803  # TFLOP: two passes, forward and twice as much backward
TRAINING = 87 * 0.85  # TFLOPS that an M-step reaches on an A100
SAVED_GB, TRANSITIONS = 37.0, 16  # that autograd keeps of a micro-batch of the recipe


@dataclass(frozen=True)
class Claim:
    """key: as the list of findings has it; holds: None where something is missing; shape: it holds on any device."""

    key: str
    words: str
    holds: Callable[[Measured], Verdict | None]
    anywhere: bool = False


class Measured:
    """Results by step and case. Missing where there is none."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.name = str(record.machine.get("card", ""))
        self.real = bool(record.machine.get("real"))

    def of(self, step: str, case: str) -> Result:
        found = dict(self._record.results(step)).get(case)
        if found is None:
            raise Missing(f"{step}: {case}")
        return found

    def number(self, step: str, case: str, key: str) -> float:
        value = self.of(step, case).get(key)
        if not isinstance(value, int | float):
            raise Missing(f"{step}: {case}: {key}")
        return float(value)

    def best(self, step: str, key: str, *words: str) -> float:
        """The highest of the cases that have all these words."""
        values = [
            r[key] for case, r in self._record.results(step) if set(words) <= set(case.split(", ")) and r.get(key)
        ]
        if not values:
            raise Missing(f"{step}: {', '.join(words)}")
        return float(max(values))


class Missing(Exception):
    """A case that a claim needs."""


def table(record: Record) -> Table:
    measured = Measured(record)
    rows = tuple((claim.key, claim.words, *verdict(claim, measured)) for claim in CLAIMS)
    return Table("Claims", ("finding", "claim", "verdict", "measured"), rows)


def verdict(claim: Claim, measured: Measured) -> tuple[str, str]:
    if not (measured.real or claim.anywhere):
        return "not measured", "wants a GPU and the real sizes"
    try:
        found = claim.holds(measured)
    except Missing as what:
        return "not measured", str(what)
    if found is None:
        return "not measured", f"nothing is said of {measured.name}"
    return ("confirmed" if found[0] else "refuted"), found[1]


# -- the claims -------------------------------------------------------------------------------------------------------


def _work(_: Measured) -> Verdict:
    unet = flops.unet_flops(SD1["unet"], TEXT_LENGTH) / 1e12
    vae = {**SD1["vae"], "down_block_types": ["DownEncoderBlock2D"] * 4}
    decoder = flops.decoder_flops(vae, 64, 64) / 1e12
    return abs(unet - 0.803) < 5e-3 and abs(decoder - 2.515) < 5e-3, f"{unet:.3f} and {decoder:.3f} TFLOP"


def _waits(measured: Measured) -> Verdict:
    busy = measured.number("timeline", "JPEG, parts 1", "busy")
    return busy < 0.75, f"{busy:.0%} busy"


def _overlaps(measured: Measured) -> Verdict:
    one, two = (measured.number("timeline", f"JPEG, parts {n}", "busy") for n in (1, 2))
    return two >= one + 0.1, f"{one:.0%} with one part, {two:.0%} with two"


def _copies(measured: Measured) -> Verdict:
    copies = measured.number("timeline", "JPEG, parts 1", "copies_share")
    return copies >= 0.1, f"{copies:.0%} of a chunk's time"


def _noise(measured: Measured) -> Verdict:
    noise = measured.number("timeline", "JPEG, parts 1", "noise_share")
    return noise <= 0.02, f"{noise:.1%} of a chunk's time"


def _decoding(measured: Measured) -> Verdict:
    decoder, network = (measured.number("timeline", "JPEG, parts 1", f"{n}_share") for n in ("decoder", "network"))
    share = decoder / max(decoder + network, 1e-9)
    return share >= 0.5, f"{share:.0%} of the time of both"


def _decoder_gains(measured: Measured) -> Verdict:
    eager, compiled = (measured.best("decoder", "tflops", "merged", layout) for layout in ("NCHW", "compiled"))
    return compiled >= 1.2 * eager, f"{compiled / eager:.2f} times as fast, {compiled:.0f} TFLOPS"


def _unmerged(measured: Measured) -> Verdict:
    merged, plain = (measured.number("unet", f"UNet, {form}, NCHW, 64", "ms") for form in ("merged", "float32"))
    return plain >= 1.1 * merged, f"{plain / merged - 1:+.0%} time at 64 rows"


def _half_adapters(measured: Measured) -> Verdict:
    names = (f"UNet, {form}, NCHW, 64" for form in ("merged", "float32", "bfloat16"))
    merged, plain, half = (measured.number("unet", name, "ms") for name in names)
    return half - merged <= 0.6 * (plain - merged), f"{half / merged - 1:+.0%} against {plain / merged - 1:+.0%}"


def _goal(step: str, place: int) -> Callable[[Measured], Verdict | None]:
    """Against the card's target; place: of the network in TARGETS."""

    def holds(measured: Measured) -> Verdict | None:
        known = [goals for name, goals in TARGETS.items() if card(measured.name) == card(name) and card(name)]
        if not known:
            return None
        found = measured.best(step, "tflops", "merged", "compiled")
        return found >= known[0][place], f"{found:.0f} of {known[0][place]:.0f} TFLOPS"

    return holds


def _pipeline(measured: Measured) -> Verdict:
    alone = measured.number("timeline", "JPEG, parts 1", "seconds")
    through = measured.number("pipeline", "JPEG, parts 1", "seconds")
    return alone >= 0.95 * through, f"{alone / through:.0%}"


def _busy(measured: Measured) -> Verdict:
    share = measured.number("pipeline", "JPEG, parts 2", "utilisation")
    return share >= 0.9, f"{share:.0%}"


def _kept(measured: Measured) -> Verdict:
    peak = measured.number("mstep", f"off, {TRANSITIONS}", "peak_gb")
    return peak >= 0.9 * SAVED_GB, f"{peak:.1f} GB at its peak"


def _doctor(measured: Measured) -> Verdict:
    peak, said = (measured.number("mstep", f"off, {TRANSITIONS}", key) for key in ("peak_gb", "doctor_gb"))
    return abs(said / peak - 1) <= 0.15, f"{said:.1f} said, {peak:.1f} GB measured"


def _checkpointing(measured: Measured) -> Verdict:
    off, on = (measured.of("mstep", f"{mode}, {TRANSITIONS}") for mode in ("off", "on"))
    if off.get("out_of_memory") or on.get("out_of_memory"):
        return bool(off.get("out_of_memory")) and not on.get("out_of_memory"), "out of memory without"
    memory, time = on["peak_gb"] / off["peak_gb"], on["ms"] / off["ms"]
    return memory <= 0.4 and time <= 1.5, f"{memory:.0%} of the memory, {time:.2f} times the time"


def _training(measured: Measured) -> Verdict | None:
    if card(measured.name) != card("A100-SXM4-80GB"):
        return None
    rates = [1000 * GUIDED_TRANSITION / r["ms"] for case, r in measured._record.results("mstep") if r.get("ms")]
    if not rates:
        raise Missing("mstep")
    return max(rates) >= TRAINING, f"{max(rates):.0f} of {TRAINING:.0f} TFLOPS"


def _same(measured: Measured) -> Verdict:
    same = {dtype: bool(measured.of("same-chunk", dtype)["same_bits"]) for dtype in ("float32", "bfloat16", "float16")}
    return all(same.values()), ", ".join(
        f"{dtype} {'same' if equal else 'other bits'}" for dtype, equal in same.items()
    )


def _moved(measured: Measured) -> Verdict:
    moved = {dtype: measured.number("same-chunk", dtype, "choices_moved") for dtype in ("bfloat16", "float16")}
    return moved["bfloat16"] > moved["float16"], ", ".join(f"{dtype} {gap:.2f}" for dtype, gap in moved.items())


def _tests(measured: Measured) -> Verdict:
    quick = measured.of("tests", "quick")
    return quick["exit_code"] == 0 and quick["tests"] > quick["skipped"], (
        f"{quick['tests'] - quick['skipped']} ran, {quick['failures'] + quick['errors']} failed"
    )


CLAIMS: Sequence[Claim] = (
    Claim("work", "A UNet pass takes 0.803 TFLOP, a decoding 2.515", _work, anywhere=True),
    Claim("tests", "The tests pass on a GPU", _tests),
    Claim("S1", "With one part and JPEG, the card is busy for less than 75 % of a chunk", _waits),
    Claim("S1", "Copies and checks on the host take a tenth of a chunk or more", _copies),
    Claim("S1", "With two parts it is busy for a tenth more", _overlaps),
    Claim("S2", "Decoding takes half of the networks' time or more", _decoding),
    Claim("S2", "The decoder gains 1.2 by compilation and channels-last", _decoder_gains),
    Claim("S3", "Unmerged float32 adapters cost a tenth or more", _unmerged),
    Claim("S3", "Adapters in bfloat16 save two fifths of that", _half_adapters),
    Claim("S9", "Noise of the host takes 2 % or less", _noise),
    Claim("B6", "A micro-batch of 16 keeps 33 GB or more without checkpointing", _kept),
    Claim("B6", "The doctor's memory is within 15 %", _doctor),
    Claim("B6", "Checkpointing takes two fifths of the memory or less, and at most half as long again", _checkpointing),
    Claim("D2", "bfloat16 moves choices further than float16", _moved),
    Claim("bits", "The same chunk is the same bits on one card", _same),
    Claim("goal", "The compiled UNet reaches the card's target", _goal("unet-compiled", 0)),
    Claim("goal", "The compiled decoder reaches the card's target", _goal("decoder", 1)),
    Claim("goal", "The pipeline takes at most 1/0.95 of the time in process", _pipeline),
    Claim("goal", "With two parts the card is busy for 90 % of the pipeline's time", _busy),
    Claim("goal", "The M-step reaches 85 % of 87 TFLOPS on an A100", _training),
)
