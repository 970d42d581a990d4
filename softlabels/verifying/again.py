"""The command that makes a set's missing shards again, rebuilt from its plan."""

from __future__ import annotations

import shlex
from typing import Any

from softlabels.format.plan import Plan
from softlabels.selection import Dense, Sampled, TopK, TopP

_DEFAULT_TEMPERATURES = (1.0, 2.0, 4.0)
_DTYPES = ("float32", "bfloat16", "float16")
_SOURCES = "SOURCE: the set whose shards.parquet has sha256 "


def command(plan: Plan, out: str, *, skip_errors: bool = False) -> tuple[str | None, str]:
    """The command, and what a person has to know of it.

    It holds the names that the plan holds, which are no paths and no addresses; fields that a run
    takes from the plan are left out.

    Args:
        out: the set's folder, as the user calls it.
        skip_errors: whether samples that could not be labelled were noted as rejects.

    Returns:
        None where no command can do it: a callable is known to its own Python code alone.
    """
    if plan.derived_from:
        return _derive(plan, out)
    teacher = plan.teacher
    if teacher.engine == "imported":
        return None, "run the same softlabels import again, with the files that it was made of"
    if teacher.engine == "callable":
        named = " ".join(filter(None, (teacher.name, teacher.revision)))
        return None, f"run the same precompute again in Python; its teacher is the callable {named}"
    server = teacher.engine == "openai-server"
    flags = {
        "--teacher": "ADDRESS" if server else teacher.name,
        "--model": teacher.name if server else None,
        "--revision": None if server else teacher.revision,
        "--dtype": teacher.dtype if teacher.dtype in _DTYPES else None,
        "--data": plan.data.name,
        "--out": out,
        **_of_data(plan),
        **_of_selection(plan),
        "--codec": plan.codec["name"],
        "--probes": plan.probes or None,
        "--on-error": "skip" if skip_errors else None,
    }
    words = [*_written(flags)]
    words += [] if plan.store_inputs else ["--no-store-inputs"]
    words += ["--packing"] if plan.packing else []
    note = "names are those in the plan: give teacher and data by where they lie"
    return shlex.join(["softlabels", "precompute", *words]), note


def _of_data(plan: Plan) -> dict[str, Any]:
    preparation = plan.preparation
    return {
        "--column": plan.data.columns[0],
        "--key": plan.data.key,
        "--limit": plan.data.limit,
        "--max-length": preparation.max_length,
        "--overlap": preparation.overlap or None,
        "--on-long": preparation.on_long,
        "--assistant-only": preparation.assistant_only or None,
    }


def _of_selection(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    match plan.selection.make():
        case TopK(k=k):
            found = {"--k": k}
        case TopP(p=p):
            found = {"--top-p": p, "--k": plan.selection.k}
        case Sampled(n=n, head=head, seed=seed):
            found = {"--draws": n, "--head": head, "--draw-seed": seed}
        case Dense():
            found = {"--dense": True}
    if plan.temperatures and plan.temperatures != _DEFAULT_TEMPERATURES:
        found["--temperatures"] = plan.temperatures
    return found


def _derive(plan: Plan, out: str) -> tuple[str, str]:
    origin = plan.derived_from[-1]
    more = [f"SOURCE{number}" for number in range(2, len(origin.merged) + 2)]
    codec = str(plan.codec["name"])
    flags = {
        "--merge": tuple(more) or None,
        "--codec": None if codec == origin.codec else codec,
        "--k": None if plan.selection.k == origin.k else plan.selection.k,
        "--keys": None if origin.keys is None else "KEYS",
        "--where": origin.where,
        "--fraction": origin.fraction,
        "--seed": None if origin.fraction is None else origin.seed,
        "--shard-records": origin.shard_records,
    }
    note = _SOURCES + ", ".join(s.shards_sha256[:16] + "…" for s in (origin, *origin.merged))
    if origin.keys is not None:
        note += f"; KEYS: the file of its {origin.keys:,} keys"
    return shlex.join(["softlabels", "derive", "SOURCE", out, *_written(flags)]), note


def _written(flags: dict[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in flags.items():
        if value is True:
            words.append(name)
        elif isinstance(value, tuple):
            words += [name, *map(_word, value)]
        elif value is not None:
            word = _word(value)
            # Alone, it would be taken for a flag.
            words += [f"{name}={word}"] if word.startswith("-") else [name, word]
    return words


def _word(value: Any) -> str:
    """As it is read back to the same value."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)
