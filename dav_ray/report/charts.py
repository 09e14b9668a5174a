"""The report's charts, as plotly figures. The page colours their text and grid, so that dark mode works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dav_ray.report.data import NAMES, RunData, Series, short_name
from dav_ray.run_dir.reward_columns import EVALUATED, PREFIX

BLUE, ORANGE, GREEN, PURPLE, GREY = "#3f7fd0", "#e08a3c", "#3fa377", "#9270c9", "#8a929c"
BAND = "rgba(63, 127, 208, 0.16)"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE)
REWARD_AXIS = "reward (its own unit)"
LABELLED_POINTS = 15  # more labels than this run into each other

SINGLE = (  # metric, title, axis title with unit
    ("heldout/kl", "KL to the pretrained model", "KL (nats per trajectory)"),
    ("search/ess", "E-step: effective number of candidates (smc: of particles)", "ESS"),
    ("mstep/nll", "M-step: negative log-likelihood", "NLL (nats)"),
    ("mstep/kl", "M-step: KL term", "KL (nats)"),
    ("mstep/grad_norm", "M-step: gradient norm", "gradient norm (before clipping)"),
)
STAGES = (("time/estep_s", "E-step"), ("time/mstep_s", "M-step"), ("time/evaluate_s", "evaluation"))


@dataclass(frozen=True)
class Chart:
    """A plotly figure as plain JSON data, and the sentence under it."""

    figure: dict[str, Any]
    caption: str = ""


def curves(run: RunData) -> list[Chart]:
    """All curves over rounds for which the run has numbers."""
    mean, sd = run.series("evaluate/reward_mean"), run.series("evaluate/reward_std")
    charts = [_reward(f"Reward: {run.reward_label}", mean, sd, run.series("reward/mean")), *_rewards(run)]
    charts += [*(_heldout(run, name) for name in run.heldout), _diversity(run)]
    for name, title, axis in SINGLE:
        if name == "search/ess" and run.alternatives is not None:
            axis = f"{axis} (of {run.alternatives:.3g})"
        charts.append(_lines(title, axis, {title: run.series(name)}))
    charts.append(_times(run))
    return [chart for chart in charts if chart is not None]


def reward_against_diversity(run: RunData) -> Chart | None:
    """Each evaluated round a point: a way to the upper left is mode collapse."""
    measure, title = ("edit_distance", "edit") if run.sequences else ("features", "feature")
    reward, diversity = run.series("evaluate/reward_mean"), run.series(f"diversity/{measure}")
    rounds = [r for r in reward if r in diversity]
    if not rounds:
        return None
    stride = -(-len(rounds) // LABELLED_POINTS)
    labels = [_point_label(r, run.first) if i % stride == 0 or r == rounds[-1] else "" for i, r in enumerate(rounds)]
    trace = go.Scatter(
        x=[diversity[r] for r in rounds],
        y=[reward[r] for r in rounds],
        text=labels,
        customdata=[_round_name(r, run.first) for r in rounds],
        mode="lines+markers+text",
        textposition="top center",
        cliponaxis=False,
        line={"color": GREY, "width": 1.5},
        marker={"color": [ORANGE if r == 0 else BLUE for r in rounds], "size": 10},
        hovertemplate="%{customdata}<br>diversity %{x:.4g}<br>reward %{y:.4g}<extra></extra>",
    )
    x_title = f"diversity (mean pairwise {title} distance)"
    figure = _figure("Reward against diversity", x_title, REWARD_AXIS)
    figure.add_trace(trace).update_layout(showlegend=False)
    return _chart(figure, "Samples without search; points carry their round. Left is less diversity.")


def reward_histogram(run: RunData, rewards: dict[int, list[float]]) -> Chart | None:
    """Distribution of the reward by round (pretrained and last), over common bins."""
    pooled = [value for values in rewards.values() for value in values]
    if not pooled:
        return None
    low, high = min(pooled), max(pooled)
    width = (high - low) / 30 or 1.0
    figure = _figure("Distribution of the reward", REWARD_AXIS, "share of samples (%)")
    for (round_, values), colour in zip(sorted(rewards.items()), (GREY, BLUE), strict=False):
        figure.add_trace(
            go.Histogram(
                x=values,
                name=f"{_round_name(round_, run.first)} (n = {len(values)})",
                xbins={"start": low, "end": high + width, "size": width},
                histnorm="percent",
                opacity=0.65,
                marker={"color": colour},
                hovertemplate="%{y:.1f} % in %{x}<extra></extra>",
            )
        )
    figure.update_layout(barmode="overlay", bargap=0.03, showlegend=True)
    return _chart(figure, "Fresh samples without search, on the same seeds and prompts.")


def edit_distance_histogram(distances: dict[int, np.ndarray], first: str = "pretrained") -> Chart | None:
    """Share of all pairs of samples by their edit distance; distances [n, n] by round (pretrained and last)."""
    counts = {r: np.bincount(d[np.triu(np.ones(d.shape, bool), 1)]) for r, d in distances.items() if len(d) > 1}
    if not counts:
        return None
    width = -(-max(len(count) for count in counts.values()) // 40)  # letters per bar, at most 40 bars
    figure = _figure("Distribution of pairwise edit distances", "edit distance (letters)", "share of pairs (%)")
    for (round_, count), colour in zip(sorted(counts.items()), (GREY, BLUE), strict=False):
        shares = 100 * np.add.reduceat(count, np.arange(0, len(count), width)) / count.sum()
        bar = go.Bar(
            x=[(i + 0.5) * width - 0.5 for i in range(len(shares))],
            y=shares.tolist(),
            width=width,
            name=f"{_round_name(round_, first)} (n = {len(distances[round_])})",
            opacity=0.65,
            marker={"color": colour},
            hovertemplate="%{y:.1f} % around %{x}<extra></extra>",
        )
        figure.add_trace(bar)
    figure.update_layout(barmode="overlay", showlegend=True)
    return _chart(figure, "All pairs of fresh samples. A peak at 0 is one sequence drawn many times.")


def _reward(title: str, mean: Series, sd: Series, accepted: Series) -> Chart | None:
    if not mean and not accepted:
        return None
    figure = _figure(title, "round", REWARD_AXIS)
    band = [r for r in mean if r in sd]
    if band:
        edge = [mean[r] + sd[r] for r in band] + [mean[r] - sd[r] for r in reversed(band)]
        outline = go.Scatter(x=band + band[::-1], y=edge, mode="lines", name="±1 sd", hoverinfo="skip")
        figure.add_trace(outline.update(fill="toself", fillcolor=BAND, line={"width": 0}))
    if mean:
        figure.add_trace(_line("without search", mean, BLUE))
    if accepted:
        figure.add_trace(_line("accepted", accepted, ORANGE, dash="dot"))
    _round_axis(figure, [*mean, *accepted])
    figure.update_layout(showlegend=True)
    return _chart(figure, "Without search: the model after the round. Accepted: found with the model before it.")


def _rewards(run: RunData) -> list[Chart | None]:
    """Each of several rewards, and all of them in one unit: what one gains at the cost of another."""
    rises: dict[str, Series] = {}
    charts: list[Chart | None] = []
    for name in run.rewards:
        mean, sd = (run.series(f"{prefix}{name}") for prefix in EVALUATED)
        charts.append(_reward(f"Reward {name}", mean, sd, run.series(f"{PREFIX}{name}")))
        if 0 in mean and sd.get(0):
            rises[name] = {r: (value - mean[0]) / sd[0] for r, value in mean.items()}
    if len(rises) > 1:
        caption = "Unweighted, without search: where one falls while another rises, they conflict."
        charts.append(_lines("Rewards against each other", "rise (sd of the pretrained model)", rises, caption))
    return charts


def _heldout(run: RunData, name: str) -> Chart | None:
    label = short_name(name)
    axis = label if name in NAMES else f"{label} (its own unit)"
    return _lines(f"Held out: {label}", axis, {label: run.series(name)}, "Never optimised.")


def _diversity(run: RunData) -> Chart | None:
    """In % of round 0, so that measures of different scale share an axis."""
    relative: dict[str, Series] = {}
    for name in run.names("diversity/"):
        values = run.series(name)
        if values.get(0):
            relative[short_name(name)] = {r: 100 * value / values[0] for r, value in values.items()}
    return _lines("Diversity", f"% of the {run.first_model}", relative, from_zero=True)


def _times(run: RunData) -> Chart | None:
    stages = [(label, run.series(name)) for name, label in STAGES]
    if not any(series for _, series in stages):
        return None
    figure = _figure("Time per round", "round", "time (s)")
    for (label, series), colour in zip(stages, PALETTE, strict=False):
        if series:
            hover = f"{label}: %{{y:.3g}} s<extra></extra>"
            bar = go.Bar(x=list(series), y=list(series.values()), name=label, marker={"color": colour})
            figure.add_trace(bar.update(hovertemplate=hover))
    _round_axis(figure, [r for _, series in stages for r in series])
    figure.update_layout(barmode="stack", bargap=0.35, showlegend=True)
    return _chart(figure, "Stages that overlap are stacked too: their sum is then more than the time that passed.")


def _lines(
    title: str, axis: str, series: dict[str, Series], caption: str = "", from_zero: bool = False
) -> Chart | None:
    series = {label: values for label, values in series.items() if values}
    if not series:
        return None
    figure = _figure(title, "round", axis)
    for index, (label, values) in enumerate(series.items()):
        figure.add_trace(_line(label, values, PALETTE[index % len(PALETTE)]))
    _round_axis(figure, [r for values in series.values() for r in values])
    figure.update_layout(showlegend=len(series) > 1, margin_t=64 if len(series) > 1 else 44)
    if from_zero:
        figure.update_yaxes(rangemode="tozero")
    return _chart(figure, caption)


def _line(label: str, values: Series, colour: str, dash: str = "solid") -> go.Scatter:
    return go.Scatter(
        x=list(values),
        y=list(values.values()),
        name=label,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 6},
        hovertemplate=f"{label}<br>round %{{x}}: %{{y:.4g}}<extra></extra>",
    )


def _figure(title: str, x_title: str, y_title: str) -> go.Figure:
    axis = {"zeroline": False, "automargin": True, "ticks": "outside", "ticklen": 4}
    layout = {
        "template": "none",
        "title": {"text": title, "font": {"size": 15}, "x": 0.02, "y": 0.97, "yanchor": "top"},
        "xaxis": {**axis, "title": {"text": x_title}, "showgrid": False, "showline": True},
        "yaxis": {**axis, "title": {"text": y_title}, "showgrid": True},
        "height": 320,
        "margin": {"l": 60, "r": 20, "t": 64, "b": 52},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "traceorder": "normal"},
        "hovermode": "closest",
    }
    return go.Figure(layout=layout)


def _round_axis(figure: go.Figure, rounds: list[int]) -> None:
    """Whole rounds as ticks; half a round of room keeps markers and bars off the frame."""
    low, high = min(rounds), max(rounds)
    step = -(-(high - low + 1) // 12)
    figure.update_xaxes(range=[low - 0.5, high + 0.5], tick0=0, dtick=step, tickformat="d")


def _round_name(round_: int, first: str) -> str:
    return first if round_ == 0 else f"round {round_}"


def _point_label(round_: int, first: str) -> str:
    return first if round_ == 0 else str(round_)


def _chart(figure: go.Figure, caption: str = "") -> Chart:
    return Chart(json.loads(figure.to_json() or "{}"), caption)
