"""Files of a data set repository of the Hugging Face Hub."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from softlabels.errors import InputError, MissingError, RemoteError, quoted
from softlabels.stores.asking import Passing, persist, told
from softlabels.stores.http import TOKEN, check_status, get_range, transport_errors


@dataclass(frozen=True)
class Hub:
    """A data set repository of the Hugging Face Hub, or a folder of it, at one revision."""

    repo: str
    revision: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """The repository, revision and folder."""
        folder = f"/{self.prefix}" if self.prefix else ""
        return f"hf://datasets/{self.repo}@{self.revision}{folder}"

    def read(self, name: str, start: int, stop: int, *, size: int) -> bytes:
        """See `Origin`."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        where, file = f"{self.url}/{name}", self._file(name)
        address = hf_hub_url(self.repo, file, repo_type="dataset", revision=self.revision)
        headers = build_hf_headers()
        return persist(where, lambda: get_range(where, address, headers, start, stop, size))

    def whole(self, name: str) -> bytes:
        """See `Origin`."""
        return self.download(name, offline=False).read_bytes()

    def download(self, name: str, *, offline: bool, again: bool = False) -> Path:
        """A file in huggingface_hub's own cache.

        Args:
            offline: only look there.
            again: also if it is there.

        Raises:
            RemoteError: it cannot be had.
        """
        where = f"{self.url}/{name}"
        return persist(where, lambda: self._try_download(name, where, offline, again))

    def pinned(self, file: Path, name: str) -> Hub:
        """The commit that a file in the cache belongs to (…/snapshots/COMMIT/name)."""
        depth = len(PurePosixPath(self._file(name)).parts)
        return Hub(self.repo, file.parents[depth - 1].name, self.prefix)

    def _file(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _try_download(self, name: str, where: str, offline: bool, again: bool) -> Path:
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(
                hf_hub_download(
                    self.repo,
                    self._file(name),
                    repo_type="dataset",
                    revision=self.revision,
                    local_files_only=offline,
                    force_download=again,
                )
            )
        except errors.LocalEntryNotFoundError as error:
            raise RemoteError(
                f"{where} is not in huggingface_hub's cache, and the Hub "
                "cannot be asked: unset HF_HUB_OFFLINE and SOFTLABELS_OFFLINE, or see to the "
                f"connection ({told(error)})"
            ) from None
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
            raise MissingError(f"{where}: there is no such file or revision") from error
        except errors.RepositoryNotFoundError as error:
            raise RemoteError(
                f"{where}: there is no such repository, or it is not yours to read; see its name, "
                f"and set {TOKEN}"
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            check_status(where, status, {})
            raise Passing(told(error)) from None
        except (OSError, transport_errors()) as error:
            raise Passing(told(error)) from None


def check_repository(name: str) -> None:
    """Raise `InputError` for what the Hub takes for no name of a repository."""
    from huggingface_hub.errors import HFValidationError

    hub: Any = importlib.import_module("huggingface_hub.utils")
    try:
        hub.validate_repo_id(name)
    except HFValidationError:
        raise InputError(
            f"{quoted(name)} is no repository: expected USER/NAME of letters, digits, -, _ and ., "
            "without -- or .., and none of - . .git at an end"
        ) from None
