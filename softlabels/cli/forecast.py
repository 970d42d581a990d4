"""What `softlabels plan` prints."""

from __future__ import annotations

from rich.table import Table

from softlabels.cli.screen import Screen
from softlabels.precomputing.advice import Choice, Estimate
from softlabels.precomputing.forecast import Forecast

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def show_forecast(forecast: Forecast) -> None:
    """In words, and a table of choices."""
    console = Screen()
    rejected = f", {forecast.sample_rejects} rejected" if forecast.sample_rejects else ""
    chosen = forecast.chosen
    console.print(
        f"{forecast.sample_rows:,} of {forecast.rows:,} samples labelled, "
        f"{forecast.sample_tokens:,} tokens at {forecast.tokens_per_s:,.0f} tokens/s{rejected}"
    )
    if forecast.perplexity is not None:
        console.print(f"the teacher's perplexity there: {forecast.perplexity:,.1f}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in forecast.shares.items())
    console.print(f"time of the stages, which overlap: {shares}\n")
    console.print("all of it, and the interval it lies in 19 times of 20:")
    console.print(f"  tokens  {_interval(forecast.tokens, _count)}")
    console.print(f"  time    {_interval(forecast.hours, _time)}")
    console.print(
        f"  bytes   {_interval(chosen.bytes, _size)} ({chosen.codec}, k = {chosen.k}: "
        f"{chosen.bytes_per_position:.0f} a position)"
        + (f", {_size(forecast.probe_bytes)} of them probes" if forecast.probe_bytes else "")
        + "\n"
    )
    console.print(_table(forecast.choices, forecast.kl_temperature))
    for advice in forecast.advice:
        console.print(f"- {advice}")


def _table(choices: tuple[Choice, ...], temperature: float) -> Table:
    table = Table(box=None, pad_edge=False)
    added = "KL added, nats" if temperature == 1 else f"KL added at T = {temperature:g}, nats"
    for name in ("codec", "k", "mass kept", "bytes a position", "in all", added):
        table.add_column(name, justify="left" if name == "codec" else "right")
    for choice in choices:
        table.add_row(
            choice.codec,
            f"{choice.k}",
            "drawn" if choice.mass_kept is None else f"{choice.mass_kept:.2%}",
            f"{choice.bytes_per_position:.1f}",
            _size(choice.bytes.mean),
            _added(choice.added_kl),
        )
    return table


def _added(kl: float | None) -> str:
    if kl is None:
        return "none in the mean"
    return "0" if abs(kl) < 1e-7 else f"{kl:.1e}"


def _interval(estimate: Estimate, words: object) -> str:
    assert callable(words)
    low, mean, high = (words(value) for value in (estimate.low, estimate.mean, estimate.high))
    return str(mean) if low == high else f"{mean} ({low} to {high})"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _size(value: float) -> str:
    for unit, size in _UNITS:
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 30 else f"{3600 * hours:.0f} s"
