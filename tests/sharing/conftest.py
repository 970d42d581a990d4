"""A Hub on loopback, and its clients told to ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, hub

from softlabels.stores import asking


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With a cache of its own on this side; the clients are the real ones."""
    from huggingface_hub import constants, utils

    utils.disable_progress_bars()
    with hub(Hub()) as server:
        # Made of the endpoint when the package was imported.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        for name, value in {
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "ENDPOINT": server.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("SOFTLABELS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(asking, "BACKOFF_S", 0.01)
        yield server
