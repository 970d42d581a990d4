"""The Hub's own client, asked with the environment's token, its errors in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from softlabels.errors import InputError, RemoteError, SoftLabelsError, quoted
from softlabels.stores.hub import check_repository

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# In the words of hf_xet, which has no other place for it.
_STATUS = re.compile(r"\((\d{3}) [A-Z][A-Za-z -]*\)")
_AGAIN = "run the same command again: what was sent is not sent again"


def repository_name(name: str) -> str:
    """USER/NAME; raises `InputError` for anything else."""
    if not _REPOSITORY.fullmatch(name):
        raise InputError(f"{quoted(name)} is no repository; expected USER/NAME")
    check_repository(name)
    return name


def token() -> str:
    """Of the environment; raises `InputError` if there is none."""
    found = os.environ.get("HF_TOKEN", "").strip()
    if not found:
        raise InputError(
            "to write to the Hub, set HF_TOKEN in the environment to a token with the right to "
            "write (https://huggingface.co/settings/tokens)"
        )
    return found


@contextmanager
def answered(where: str) -> Iterator[None]:
    """Errors of the Hub and of the way there in words, without what a URL or header may hold.

    Raises:
        RemoteError: the Hub refuses, or cannot be reached.
    """
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        raise RemoteError(f"{where}: {_refusal(error)}") from None
    except SoftLabelsError:
        raise
    except (httpx2.HTTPError, OSError) as error:
        why = type(error).__name__
        if status := _STATUS.search(str(error)):
            raise RemoteError(
                f"{where}: {_answer(int(status[1]), 'the storage of the Hub', '')}; {_AGAIN}"
            ) from None
        raise RemoteError(f"{where}: the Hub cannot be reached ({why}); {_AGAIN}") from None
    except (RuntimeError, ValueError) as error:
        # How the client wraps what stopped an upload, or an answer that it cannot read.
        cause = error.__cause__ or error
        known = isinstance(cause, errors.HfHubHTTPError)
        why = _refusal(cause) if known else type(cause).__name__
        raise RemoteError(f"{where}: a file could not be sent: {why}; {_AGAIN}") from None


def _refusal(error: object) -> str:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    told = f": {quoted(error.server_message, limit=200)}" if error.server_message else ""
    words = _answer(status, "the Hub", told)
    if status == 412:
        return (
            f"{words}. Somebody else pushed to it while this push was under way; nothing of this "
            "one is to be seen there. Look at what is there now, and push again if it is to be "
            "replaced: what was sent is not sent again"
        )
    return words


def _answer(status: int, who: str, told: str) -> str:
    words = f"{who} answers HTTP {status}{told}"
    if status in (401, 403, 404):
        return f"{words}. See its name, and that HF_TOKEN in the environment may write there"
    return words
