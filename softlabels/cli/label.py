"""`softlabels precompute`, `plan` and `derive`: commands that make a set, or would."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softlabels.cli.arguments import DeriveArguments, PlanArguments, PrecomputeArguments
from softlabels.cli.forecast import show_forecast
from softlabels.cli.output import check_file
from softlabels.cli.screen import Screen
from softlabels.deriving.derive import derive
from softlabels.errors import InputError, quoted
from softlabels.format.plan import first_problem
from softlabels.inputs.preparation import Answers
from softlabels.labelset.reader import LabelSet
from softlabels.precomputing.executors import Executor, Ray
from softlabels.precomputing.forecast import plan
from softlabels.precomputing.run import precompute
from softlabels.ranks import choose_device
from softlabels.selection import Dense, Sampled, Selection, TopK, TopP
from softlabels.teachers import Teacher, from_server, is_address, pretrained


def label(arguments: PrecomputeArguments) -> int:
    """Label, and say what was made and what to do with it."""
    began = time.perf_counter()
    executor = _executor(arguments)
    choose_device()
    teacher = _teacher(arguments)
    _silence()
    labels = precompute(
        arguments.data,
        teacher,
        arguments.out,
        rank=arguments.rank,
        world_size=arguments.world_size,
        executor=executor,
        workers=arguments.workers,
        progress=not arguments.quiet,
        **_settings(arguments),
    )
    return _tell(labels, arguments.out, began, as_json=arguments.json)


def _executor(arguments: PrecomputeArguments) -> Executor:
    """Raises `InputError` for flags that belong to another executor."""
    given = {
        f"--{name}": getattr(arguments, name)
        for name in ("address", "actors", "resources")
        if getattr(arguments, name) is not None
    }
    if arguments.executor == "local":
        if given:
            raise InputError(f"{next(iter(given))} is for --executor ray; give that too")
        return "local"
    if arguments.workers != 1:
        raise InputError("--workers is for --executor local; say --actors for Ray's")
    return Ray(
        actors=1 if arguments.actors is None else arguments.actors,
        address=arguments.address,
        resources=_resources(arguments.resources),
    )


def _resources(text: str | None) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
        return {str(name): float(amount) for name, amount in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            f"--resources {quoted(text)} is no JSON object of amounts; write for instance "
            """'{"CPU": 2, "GPU": 1}'"""
        ) from None


def show_plan(arguments: PlanArguments) -> int:
    """Label a sample, and say what all of it would take."""
    if arguments.write is not None:
        check_file("--write", arguments.write)
    teacher = _teacher(arguments)
    _silence()
    forecast = plan(
        arguments.data,
        teacher,
        sample=arguments.sample,
        seed=arguments.seed,
        progress=not arguments.quiet,
        **_settings(arguments),
    )
    made = forecast.model_dump_json(indent=2)
    if arguments.json:
        print(made)
    else:
        show_forecast(forecast)
    if arguments.write is not None:
        arguments.write.write_text(made + "\n")
    return 0


def _teacher(arguments: PrecomputeArguments) -> Teacher:
    if is_address(arguments.teacher):
        return from_server(
            arguments.teacher,
            arguments.model,
            tokenizer=arguments.tokenizer,
            api_key=os.environ.get("SOFTLABELS_API_KEY"),
            concurrency=arguments.concurrency,
        )
    return pretrained(
        arguments.teacher,
        task=None if arguments.task == "auto" else arguments.task,
        device=arguments.device,
        dtype=arguments.dtype,
        revision=arguments.revision,
        base=arguments.base,
        gguf_file=arguments.gguf_file,
        attn_implementation=arguments.attn_implementation,
        compile=arguments.compile,
        trust_remote_code=arguments.trust_remote_code,
        allow_pickle=arguments.allow_pickle,
    )


def _settings(arguments: PrecomputeArguments) -> dict[str, Any]:
    """The arguments that `precompute` and `plan` have in common."""
    names = (
        "column key label max_length overlap on_long assistant_only temperatures codec "
        "store_inputs probes limit on_error unit_rows batch_tokens packing"
    )
    return {
        "selection": _selection(arguments),
        "answers": _answers(arguments),
        **{name: getattr(arguments, name) for name in names.split()},
    }


def _answers(arguments: PrecomputeArguments) -> Answers | None:
    settings = {
        "temperature": arguments.answer_temperature,
        "top_p": arguments.answer_top_p,
        "seed": arguments.answer_seed,
    }
    if arguments.answers is None:
        default = Answers()
        named = [name for name, value in settings.items() if value != getattr(default, name)]
        if named:
            raise InputError(
                f"--answer-{named[0].replace('_', '-')} says how answers are drawn; say how long "
                "they may be, too: --answers 256"
            )
        return None
    try:
        return Answers.model_validate({"max_new_tokens": arguments.answers, **settings})
    except ValidationError as error:
        raise InputError(f"answers: {first_problem(error)}") from None


def _selection(arguments: PrecomputeArguments) -> Selection | None:
    """None where the flags name none.

    Raises:
        InputError: they name two.
    """
    k, draws = arguments.k, arguments.draws
    given = {
        "--k or --top-p": k is not None or arguments.top_p is not None,
        "--draws": draws is not None,
        "--dense": arguments.dense,
    }
    named = [name for name, there in given.items() if there]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} are two selections; choose one")
    if arguments.head is not None and draws is None:
        raise InputError("--head is a part of the entries that --draws keeps; give that too")
    if draws is not None:
        return Sampled(draws, arguments.head, arguments.draw_seed)
    if arguments.dense:
        return Dense()
    if arguments.top_p is not None:
        return TopP(arguments.top_p, *([] if k is None else [k]))
    return None if k is None else TopK(k)


def derive_set(arguments: DeriveArguments) -> int:
    """Derive, and say what was made."""
    began = time.perf_counter()
    labels = derive(
        arguments.source,
        arguments.out,
        merge=arguments.merge or (),
        codec=arguments.codec,
        k=arguments.k,
        keys=arguments.keys,
        where=arguments.where,
        fraction=arguments.fraction,
        seed=arguments.seed,
        shard_records=arguments.shard_records,
        workers=arguments.workers,
        progress=not arguments.quiet,
    )
    return _tell(labels, arguments.out, began, as_json=arguments.json)


def _tell(labels: LabelSet, out: Path | str, began: float, *, as_json: bool) -> int:
    totals = labels.totals
    if as_json:
        print(totals.model_dump_json())
        return 0
    console = Screen()
    console.print(
        f"{out}: {totals.records:,} records of {totals.source_rows:,} samples, "
        f"{totals.positions:,} positions, {totals.bytes / 1e6:.1f} MB "
        f"({totals.bytes / max(1, totals.positions):.0f} bytes a position), "
        f"{time.perf_counter() - began:.0f} s"
    )
    if totals.rejects:
        console.print(f"{totals.rejects:,} samples were rejected; rejects.parquet says why")
    if totals.truncated:
        longest = labels.plan.preparation.max_length
        console.print(f"{totals.truncated:,} samples were cut at {longest} tokens")
    if labels.finished:
        console.print(f"next: softlabels show {out}")
    else:
        console.print("next: the other ranks; the one that ends last finishes the set")
    return 0


def _silence() -> None:
    """One bar is enough; those of the libraries count other things."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
