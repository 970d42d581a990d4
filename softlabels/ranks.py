"""Which of several processes this one is: as told, by torch.distributed, torchrun or Slurm."""

from __future__ import annotations

import os

import torch

from softlabels.errors import InputError

# (rank, world_size), 0 ≤ rank < world_size.
Place = tuple[int, int]


def given(rank: int | None, world_size: int | None, *, default: str) -> Place | None:
    """The user's; None where there is none.

    Args:
        default: what counts then, in words.

    Raises:
        InputError: only one is given, or they do not fit each other.
    """
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise InputError(
            f"rank is {rank}, world_size {world_size}; give both, with 0 ≤ rank < world_size, or "
            f"neither: {default}"
        )
    return rank, world_size


def of_torch() -> Place | None:
    """torch.distributed's, else that of torchrun's environment."""
    found = initialised()
    if found is not None:
        return found
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if rank is not None and world_size is not None and rank < world_size:
        return rank, world_size
    return None


def initialised() -> Place | None:
    """torch.distributed's."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def of_slurm() -> Place | None:
    """A Slurm array's task, a task of `srun`, or a task of `srun` in an array's task.

    Raises:
        InputError: the array's numbers are not evenly spaced.
    """
    array, step = _of_array(), _of_step()
    if array is None or step is None:
        return array or step
    return array[0] * step[1] + step[0], array[1] * step[1]


def _of_array() -> Place | None:
    number, count = _number("SLURM_ARRAY_TASK_ID"), _number("SLURM_ARRAY_TASK_COUNT")
    if number is None or not count:
        return None
    low = _number("SLURM_ARRAY_TASK_MIN") or 0
    high = _number("SLURM_ARRAY_TASK_MAX")
    apart = _number("SLURM_ARRAY_TASK_STEP") or 1
    index, rest = divmod(number - low, apart)
    even = high is None or (high - low) // apart + 1 == count
    if rest or not even or not 0 <= index < count:
        raise InputError(
            f"the Slurm array has {count} tasks from {low} to {high}, and which of them is "
            f"task {number} cannot be told; number them evenly (--array=0-{count - 1}), or give "
            "rank and world_size (--rank, --world-size)"
        )
    return index, count


def _of_step() -> Place | None:
    # A batch script, too, is told of all tasks, but is itself no task of a step.
    if "SLURM_STEP_ID" not in os.environ:
        return None
    rank = _number("SLURM_PROCID")
    world_size = _number("SLURM_STEP_NUM_TASKS") or _number("SLURM_NTASKS")
    if rank is None or not world_size or rank >= world_size:
        return None
    return rank, world_size


def choose_device() -> None:
    """Make LOCAL_RANK's CUDA device the default one, where there are several."""
    local = local_rank()
    if local is not None and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        torch.cuda.set_device(local % torch.cuda.device_count())


def local_rank() -> int | None:
    """Which of the machine's processes this is; None where nobody says."""
    found = _number("LOCAL_RANK")
    if found is None and _of_step() is not None:
        return _number("SLURM_LOCALID")
    return found


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and value.isascii() else None
