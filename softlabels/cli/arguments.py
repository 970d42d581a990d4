"""The fields of the commands that do work, from flags or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from softlabels.errors import quoted
from softlabels.losses.targets import Tail
from softlabels.training.recipe import Decay, LossName, Schedule, Through


def _help(text: str) -> Parameter:
    return Parameter(help=text)


def _count(text: str) -> Parameter:
    return Parameter(help=text, converter=_whole_number)


def _whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """Of "4.6" cyclopts itself makes 5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{quoted(tokens[0].value)} is no whole number") from None


@dataclass(frozen=True, kw_only=True)
class PrecomputeArguments:
    """What `softlabels precompute` takes; `softlabels.precompute` explains each at length."""

    teacher: Annotated[
        str,
        _help("A model or adapter: Hub name, folder or GGUF file, see --task; or http://a.server."),
    ]
    data: Annotated[str, _help("A path, folder or glob of Parquet, JSONL or text files.")]
    out: Annotated[
        str, _help("The label set's folder or URL (s3://…): new, empty, or one to resume.")
    ]
    column: Annotated[
        str, _help("What is labelled: text, chat messages, token ids, or arrays.")
    ] = "text"
    key: Annotated[
        str | None, _help("Column that names samples, unique; row numbers by default.")
    ] = None
    label: Annotated[
        str | None, _help("Column of hard labels, of a teacher that gives one label a sample.")
    ] = None
    k: Annotated[int | None, _count("Classes kept at every position: 64, tiny 8.")] = None
    top_p: Annotated[
        float | None, _help("Of these only as many as reach this mass: 0.95, say.")
    ] = None
    draws: Annotated[
        int | None,
        _count("In place of k: so many entries, drawn so that their weights are unbiased."),
    ] = None
    head: Annotated[
        int | None, _count("Of these the likeliest, kept as they are; as many as pay.")
    ] = None
    draw_seed: Annotated[int, _count("Of the draws; with it they can be made again.")] = 0
    dense: Annotated[bool, Parameter(negative="", help="In place of k: all classes.")] = False
    max_length: Annotated[int, _count("Tokens in a record, at most.")] = 512
    overlap: Annotated[int, _count("Tokens a window repeats from the one before, as context.")] = 0
    on_long: Annotated[
        Literal["window", "truncate", "reject", "raise"],
        _help("Samples above max-length."),
    ] = "window"
    assistant_only: Annotated[
        bool, _help("Of messages, label only what predicts the assistant's tokens.")
    ] = False
    answers: Annotated[
        int | None,
        _count("The column holds prompts: label the teacher's answers, of so many tokens at most."),
    ] = None
    answer_temperature: Annotated[
        float, _help("Draw their tokens at this temperature; 0 takes the likeliest.")
    ] = 0.0
    answer_top_p: Annotated[float, _help("Draw from as few tokens as reach this mass.")] = 1.0
    answer_seed: Annotated[int, _count("Of these draws.")] = 0
    temperatures: Annotated[
        tuple[float, ...] | None,
        Parameter(
            help="Where the mass of the classes not kept is stored: 1, 2 and 4.",
            consume_multiple=True,
            negative="",
        ),
    ] = None
    codec: Annotated[
        str | None,
        _help(
            "compact: a third of float32's bytes; tiny: compact for k = 8; lossless: the logits "
            "bit for bit; plain: float32 lists that anyone can read; sampled: for --draws. Of "
            "several labels: binary, binary:BITS or binary_plain. Of vectors: float32, float16, "
            "int8, product or product:BYTES. The plan's when resuming, else what fits."
        ),
    ] = None
    store_inputs: Annotated[
        bool | None, _help("Keep the token ids in the set; on where there are any.")
    ] = None
    probes: Annotated[
        int, _count("Keep the dense logits of so many positions, to measure the set against.")
    ] = 0
    limit: Annotated[int | None, _count("Only the first so many rows.")] = None
    on_error: Annotated[
        Literal["raise", "skip"],
        _help("Samples that cannot be labelled: stop, or note them as rejects and go on."),
    ] = "raise"
    unit_rows: Annotated[
        int | None, _count("Rows in a work unit, which makes one shard; 256 for a new set.")
    ] = None
    batch_tokens: Annotated[
        int | None, _count("Padded tokens in a batch, at most; 8,192, a GPU: by trial.")
    ] = None
    packing: Annotated[
        bool,
        Parameter(negative="", help="Several short records in a row, kept apart, for padding."),
    ] = False
    device: Annotated[str | None, _help("Where the teacher runs; CUDA where there is one.")] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        _help("The teacher's weights; float32 on a CPU, else the checkpoint's."),
    ] = None
    revision: Annotated[str | None, _help("The teacher's commit, branch or tag.")] = None
    task: Annotated[
        Literal["auto", "causal_lm", "masked_lm", "sequence_classifier", "token_classifier"],
        _help("What the teacher answers; by default what its config says."),
    ] = "auto"
    base: Annotated[str | None, _help("The model that a PEFT adapter is for.")] = None
    gguf_file: Annotated[str | None, _help("Which GGUF of the teacher's folder.")] = None
    attn_implementation: Annotated[
        str | None, _help("sdpa, eager, flash_attention_2, …; what transformers chooses.")
    ] = None
    compile: Annotated[
        bool, Parameter(negative="", help="Run the teacher's body through torch.compile.")
    ] = False
    trust_remote_code: Annotated[
        bool, Parameter(negative="", help="Run Python code that comes with the teacher.")
    ] = False
    allow_pickle: Annotated[
        bool, Parameter(negative="", help="Load pytorch_model.bin where there are no safetensors.")
    ] = False
    model: Annotated[
        str | None, _help("Of a server: which of its models; by default the only one.")
    ] = None
    tokenizer: Annotated[
        str | None, _help("Of a server: a tokenizer's name or folder; by default its model's.")
    ] = None
    concurrency: Annotated[int, _count("Of a server: requests at a time.")] = 8
    rank: Annotated[
        int | None,
        _count("Label this share of the work units alone; torchrun's and Slurm's by default."),
    ] = None
    world_size: Annotated[int | None, _count("How many shares there are.")] = None
    executor: Annotated[
        Literal["local", "ray"], _help("Processes of this machine, or a Ray cluster's actors.")
    ] = "local"
    workers: Annotated[int, _count("Of local: processes, a CUDA device each.")] = 1
    address: Annotated[
        str | None, _help("Of ray: the cluster's; by default one begun here for the job.")
    ] = None
    actors: Annotated[int | None, _count("Of ray: how many, at most; 1.")] = None
    resources: Annotated[
        str | None, _help('Of ray: each actor\'s, as JSON: {"CPU": 2, "GPU": 1}.')
    ] = None
    quiet: Annotated[bool, Parameter(negative="", help="No progress.")] = False
    json: Annotated[bool, Parameter(negative="", help="Print the totals as JSON at the end.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class PlanArguments(PrecomputeArguments):
    """What `softlabels plan` takes: the same, and how much it tries."""

    out: Annotated[str | None, _help("Not touched; here so that a command can be copied.")] = None  # type: ignore[assignment]
    sample: Annotated[int, _count("Rows that are labelled to know it.")] = 256
    seed: Annotated[int, _count("Which rows.")] = 0
    write: Annotated[Path | None, _help("Write the forecast as JSON to this file too.")] = None


@dataclass(frozen=True)
class DeriveArguments:
    """What `softlabels derive` takes."""

    source: Annotated[str, Parameter(help="A finished label set: its folder or URL.")]
    out: Annotated[str, Parameter(help="The new set's folder or URL: new, empty, or to resume.")]
    _: KW_ONLY
    merge: Annotated[
        tuple[str, ...] | None,
        Parameter(help="Sets to append, of the same recipe.", consume_multiple=True, negative=""),
    ] = None
    codec: Annotated[
        str | None,
        _help(
            "How labels are written: compact, tiny, lossless, plain, or what precompute has for "
            "other kinds of label; as in the source."
        ),
    ] = None
    label: Annotated[
        str | None, _help("Column of hard labels, of a teacher that gives one label a sample.")
    ] = None
    k: Annotated[int | None, _count("Classes kept at every position; all of the source's.")] = None
    keys: Annotated[
        Path | None, _help("Only these samples: a file with a key in each line, or Parquet.")
    ] = None
    where: Annotated[str | None, _help('Only records for which this holds: "entropy < 2".')] = None
    fraction: Annotated[float | None, _help("Only this share of the samples, by their keys.")] = (
        None
    )
    seed: Annotated[int, _count("Which samples.")] = 0
    shard_records: Annotated[
        int | None, _count("Records in a shard, at most; by default shards stay as they are.")
    ] = None
    workers: Annotated[int | None, _count("Threads; one for each core, at most 8.")] = None
    quiet: Annotated[bool, Parameter(negative="", help="No progress.")] = False
    json: Annotated[bool, Parameter(negative="", help="Print the totals as JSON at the end.")] = (
        False
    )


@dataclass(frozen=True)
class TrainArguments:
    """What `softlabels train` takes; `softlabels.training.recipe` explains each at length."""

    labels: Annotated[str, Parameter(help="A finished label set: its folder or URL.")]
    _: KW_ONLY
    out: Annotated[Path, _help("The run's folder: new, empty, or one to resume.")]
    data: Annotated[
        str | None, _help("What was labelled, where the set does not carry its inputs.")
    ] = None
    student: Annotated[
        str | None,
        _help("A size (nano, tiny, mini, small, base; tiny), or a transformers config.json."),
    ] = None
    prune: Annotated[
        str | None, _help("In place of --student: a teacher's folder or Hub name, see --layers.")
    ] = None
    layers: Annotated[int | None, _count("Layers of --prune that are kept, evenly spaced.")] = None
    loss: Annotated[LossName, _help("Against the teacher; ce: on hard labels alone.")] = "kl"
    temperature: Annotated[float, _help("Of the loss.")] = 1.0
    tail: Annotated[Tail, _help("What stands for the classes that were not kept.")] = "rest"
    k: Annotated[int | None, _count("Only the likeliest so many of the kept classes.")] = None
    alpha: Annotated[float | None, _help("Of decoupled_kl: weight of the hard label's part.")] = (
        None
    )
    beta: Annotated[float | None, _help("Of js, and of decoupled_kl's other part.")] = None
    hard_weight: Annotated[
        float, _help("w in (1 − w) · loss + w · cross-entropy on hard labels.")
    ] = 0.0
    hard_weight_end: Annotated[float | None, _help("Its value at the last step.")] = None
    hard_weight_schedule: Annotated[Decay, _help("How it goes there.")] = "constant"
    through: Annotated[Through, _help("Whether logits are made; hidden: never all of them.")] = (
        "auto"
    )
    steps: Annotated[int | None, _count("How long; or --epochs.")] = None
    epochs: Annotated[int | None, _count("How long; 1 where neither is given.")] = None
    batch_size: Annotated[int, _count("Rows in a batch.")] = 8
    accumulate: Annotated[int, _count("Batches in a step.")] = 1
    row_length: Annotated[int | None, _count("Several records in each row of so many tokens.")] = (
        None
    )
    max_length: Annotated[int | None, _count("Tokens of a record, at most.")] = None
    shuffle: Annotated[bool, _help("Each epoch in another order.")] = True
    held_out: Annotated[
        float | None, _help("Share of the samples that is kept for evaluation: 0.1; 0 for none.")
    ] = None
    held_out_every: Annotated[int | None, _count("In its place: every n-th sample.")] = None
    held_out_labels: Annotated[str | None, _help("Another set to evaluate on.")] = None
    held_out_data: Annotated[str | None, _help("Its data, where it does not carry its inputs.")] = (
        None
    )
    lr: Annotated[float, _help("The highest learning rate.")] = 1e-3
    schedule: Annotated[Schedule, _help("Of the learning rate, after the warmup.")] = "cosine"
    warmup: Annotated[float, _help("Share of the steps in which it rises.")] = 0.05
    decay: Annotated[float, _help("Of wsd: share of the steps in which it falls.")] = 0.2
    final: Annotated[float, _help("Where it ends, as a share of --lr.")] = 0.0
    weight_decay: Annotated[float, _help("Of AdamW; not for norms and biases.")] = 0.01
    clip: Annotated[float, _help("Largest norm of the gradient.")] = 1.0
    seed: Annotated[int, _count("Of weights, order and held-out samples.")] = 0
    device: Annotated[str | None, _help("CUDA where there is one.")] = None
    autocast: Annotated[
        bool, Parameter(negative="", help="Run the student in bfloat16; on CUDA.")
    ] = False
    log_every: Annotated[int, _count("Steps between lines of metrics.jsonl.")] = 10
    evaluate_every: Annotated[
        int | None, _count("Steps between evaluations; at the beginning and end alone.")
    ] = None
    checkpoint_every: Annotated[int, _count("Steps that a killed run loses, at most.")] = 200
    plot: Annotated[bool, _help("Draw metrics.png; needs matplotlib.")] = True
    quiet: Annotated[bool, Parameter(negative="", help="No progress.")] = False
    json: Annotated[bool, Parameter(negative="", help="Print the result as JSON at the end.")] = (
        False
    )
