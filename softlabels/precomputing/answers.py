"""Prompts to a teacher's own answers, whose tokens are then labelled as any others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from softlabels.errors import LabellingError, SoftLabelsError
from softlabels.inputs.preparation import Answers
from softlabels.inputs.windows import Windows
from softlabels.teachers import Teacher
from softlabels.teachers.traits import Answering

Int64s = NDArray[np.int64]


def answered(
    windows: Windows, teacher: Teacher, settings: Answers, *, max_length: int, batch_tokens: int
) -> Windows:
    """Prompts with their answers, labelled where these are predicted.

    Which random numbers an answer is drawn by depends on the seed and on the prompts of its batch.

    Args:
        windows: prompts, a record each, of fewer than `max_length` tokens.
        max_length: tokens of a prompt and its answer, at most.
        batch_tokens: padded ones in a batch, at most.

    Returns:
        the windows of those that were answered; the others are among their `failures`.

    Raises:
        LabellingError: the teacher runs out of memory on one prompt.
    """
    assert windows.token_ids is not None
    assert isinstance(teacher, Answering)
    prompts = np.split(windows.token_ids, windows.offsets[1:-1]) if len(windows) else []
    found: list[Int64s | None] = [None] * len(prompts)
    reasons: dict[int, str] = {}
    for batch in _batches(windows.lengths, settings.max_new_tokens, max_length, batch_tokens):
        for place, answer in _answer([prompts[i] for i in batch], teacher, settings, max_length):
            if isinstance(answer, str):
                reasons[int(windows.rows[batch[place]])] = answer
            else:
                found[batch[place]] = answer
    failures = (*windows.failures, *sorted(reasons.items()))
    return replace(windows.with_answers(found), failures=failures)


def _batches(
    lengths: Int64s, new_tokens: int, max_length: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Prompts of about one length, so many that they and their answers fit."""
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        longest = min(int(lengths[order[0]]) + new_tokens, max_length)
        size = max(1, batch_tokens // longest)
        yield order[:size]
        order = order[size:]


def _answer(
    prompts: Sequence[Int64s], teacher: Answering, settings: Answers, max_length: int
) -> Iterator[tuple[int, Int64s | str]]:
    """Each prompt's place and its answer, or why it has none: one's fault costs no other."""
    try:
        yield from enumerate(_run(prompts, teacher, settings, max_length))
    except torch.OutOfMemoryError as error:
        if len(prompts) == 1:
            raise LabellingError(
                f"the teacher ran out of memory answering one prompt of {len(prompts[0])} tokens: "
                f"{str(error).splitlines()[0]}. Choose fewer max_new_tokens, or a device with more "
                "memory"
            ) from error
    except SoftLabelsError:
        raise
    except Exception as error:
        if len(prompts) == 1:
            yield 0, f"the teacher raised {type(error).__name__}: {error}"
    else:
        return
    if len(prompts) > 1:
        middle = math.ceil(len(prompts) / 2)
        for start, some in ((0, prompts[:middle]), (middle, prompts[middle:])):
            for place, answer in _answer(some, teacher, settings, max_length):
                yield start + place, answer


def _run(
    prompts: Sequence[Int64s], teacher: Answering, settings: Answers, max_length: int
) -> list[Int64s]:
    longest = max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    padding = torch.ones(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        padding[row, longest - len(prompt) :] = False
    rooms = [min(settings.max_new_tokens, max_length - len(prompt)) for prompt in prompts]
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(_seed(prompts, settings.seed))
        told = teacher.answers(input_ids, padding=padding, room=max(rooms), settings=settings)
    return [
        ids[:room].cpu().numpy().astype(np.int64) for ids, room in zip(told, rooms, strict=True)
    ]


def _seed(prompts: Sequence[Int64s], seed: int) -> int:
    state = xxhash.xxh3_64(seed.to_bytes(8, "little", signed=True))
    for prompt in prompts:
        state.update(len(prompt).to_bytes(8, "little") + prompt.tobytes())
    return state.intdigest() >> 1
