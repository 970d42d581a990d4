"""A fresh small Llama for every test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import built


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def llama() -> Any:
    return built("Llama")
