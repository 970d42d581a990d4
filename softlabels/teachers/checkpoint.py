"""Where a transformers model lies, and how it is loaded: a folder, a GGUF, an adapter, the Hub."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from softlabels.errors import TeacherError, quoted
from softlabels.teachers.adapters import brought, merged, task_of_adapter, with_classes_of
from softlabels.teachers.digests import fingerprint, json_digest, kept
from softlabels.teachers.identity import dtype_name, weights_digest
from softlabels.teachers.tasks import Task, task_of


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a model is loaded and run.

    Attributes:
        device: "cuda" where there is one, else "cpu".
        dtype: of the weights; by default the checkpoint's on an accelerator and float32 on a CPU.
        revision: a Hub commit, branch or tag.
        gguf_file: which file of the folder or repository, where its weights are a GGUF; they are
            unpacked.
        base: the model that an adapter is for; what the adapter's config names by default.
        attn_implementation: "sdpa", "eager", "flash_attention_2", …; transformers' choice by
            default.
        compile: run the body through `torch.compile`, for any length.
        trust_remote_code: run Python code that comes with the model, with your rights.
        allow_pickle: also load `pytorch_model.bin`, where there are no safetensors.
    """

    device: str | torch.device | None = None
    dtype: torch.dtype | str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    base: str | Path | None = None
    attn_implementation: str | None = None
    compile: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, by folder or Hub name; nothing is read before it is asked for.

    Attributes:
        path: a folder, or the name of a Hub repository.
        loading: how it is loaded.
        role: what it is to whoever named it, for errors.
    """

    path: str
    loading: Loading
    role: str = field(default="teacher", compare=False)

    @classmethod
    def named(cls, path: str, loading: Loading, *, role: str = "teacher") -> Checkpoint:
        """The checkpoint of a folder, a `.gguf` file or a Hub name.

        Raises:
            TeacherError: there is no such folder or file, or it is a folder and has a revision.
        """
        file = Path(path)
        if file.suffix == ".gguf" and file.is_file():
            path, loading = str(file.parent), replace(loading, gguf_file=file.name)
        found = cls(path, loading, role)
        if found.folder is None and (not may_be_on_hub(path) or file.suffix == ".gguf"):
            kind = "file" if file.suffix == ".gguf" else "folder"
            raise TeacherError(f"the {role} {quoted(path)}: there is no such {kind}")
        if found.folder is not None and loading.revision is not None:
            raise TeacherError(
                f"the {role} {quoted(path)} is a folder, which has no revision "
                f"{quoted(loading.revision)}; leave out revision= (--revision)"
            )
        return found

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine; None for one of the Hub."""
        return folder_of(self.path)

    @property
    def name(self) -> str:
        """For people: a Hub name, the name of a folder or of a GGUF; never a path."""
        if self.folder is None:
            return self.path
        if self.loading.gguf_file:
            return Path(self.loading.gguf_file).stem
        return self.folder.resolve().name

    @cached_property
    def commit(self) -> str | None:
        """The Hub's commit that everything is loaded from; None for a folder."""
        if self.folder is not None:
            return None
        own = "config.json" if self.adapter is None else "adapter_config.json"
        file = self._fetched(self.loading.gguf_file or own)
        found = re.search(r"/snapshots/([0-9a-f]{40})/", file.as_posix()) if file else None
        return None if found is None else found[1]

    @cached_property
    def adapter(self) -> Path | None:
        """The folder of the PEFT adapter that this is; None for a whole model."""
        if self.loading.gguf_file:
            return None
        with self._explained():
            found = find_adapter_config_file(self.path, revision=self.loading.revision)
        if found is None:
            return None
        if self.folder is None:  # on the Hub: its weights are fetched beside its config
            names = ["adapter_model.safetensors"]
            names += ["adapter_model.bin"] if self.loading.allow_pickle else []
            if not any(map(self._fetched, names)):
                raise self._only_pickled("adapter_model")
        return Path(found).parent

    @cached_property
    def base(self) -> Checkpoint:
        """The model that an adapter is for; itself where it is a whole model.

        Raises:
            TeacherError: it is not known or not there, or is an adapter itself.
        """
        given = self.loading.base
        if self.adapter is None:
            if given is not None:
                raise TeacherError(
                    f"the {self.role} {quoted(self.path)} is a whole model and no adapter (it has "
                    "no adapter_config.json); leave out base= (--base)"
                )
            return self
        if given is None and (self.adapter / "config.json").is_file():
            raise TeacherError(
                f"the {self.role} {quoted(self.path)} holds both a model and an adapter; say with "
                "base= (--base) which model the adapter is for, or remove adapter_config.json"
            )
        config = self._adapter_config
        named = config.get("base_model_name_or_path")
        if given is None and not named:
            raise TeacherError(
                f"the adapter {quoted(self.path)} does not name the model that it is for; name it "
                "with base= (--base)"
            )
        revision = None if given is not None else config.get("revision")
        loading = replace(self.loading, base=None, revision=revision)
        role = f"base model (base=, --base) of the adapter {quoted(self.path)},"
        found = Checkpoint.named(str(given or named), loading, role=role)
        if found.adapter is not None:
            raise TeacherError(
                f"the {role} {quoted(found.path)}, is an adapter itself; merge it into its own "
                "model first, and save that"
            )
        return found

    @cached_property
    def config(self) -> Any:
        """The model's configuration; an adapter has its base model's."""
        return self.base._from_pretrained(transformers.AutoConfig)

    def config_for(self, task: Task) -> Any:
        """The same, of so many classes as a head that an adapter brings for the task."""
        if not (self._head and task.has_classes):
            return self.config
        with self._explained():
            trusted = self.loading.trust_remote_code
            return with_classes_of(self._head, self.config, task, trust_remote_code=trusted)

    def task_of(self, asked: str | None) -> Task | None:
        """The task that it says that it has, an adapter before its base; None for any.

        Args:
            asked: an adapter that brings a head and does not say for what has the task asked for.
        """
        found = task_of_adapter(self._adapter_config)
        if found is None and not (asked and self._head):
            found = task_of(getattr(self.config, "architectures", None) or ())
        return found

    @cached_property
    def _adapter_config(self) -> dict[str, Any]:
        if self.adapter is None:
            return {}
        with self._explained():
            return dict(json.loads((self.adapter / "adapter_config.json").read_bytes()))

    @cached_property
    def _head(self) -> dict[str, tuple[int, ...]]:
        """See `adapters.brought`."""
        if self.adapter is None:
            return {}
        with self._explained():
            return brought(self.adapter, self._adapter_config)

    def tokenizer(self) -> Any | None:
        """Its tokenizer, an adapter's own before its base model's; None where it has none."""
        if self.loading.gguf_file is None and self.folder is not None:
            has_one = any(map(_is_of_tokenizer, self.folder.iterdir()))
            if not has_one:
                return None if self.adapter is None else self.base.tokenizer()
        return self._from_pretrained(transformers.AutoTokenizer)

    def part(self, kind: Any) -> Any | None:
        """What goes with the model, a processor, say; None where it has none.

        Args:
            kind: what loads it, in transformers.
        """
        if self.file("preprocessor_config.json") is None:
            return None
        return self._from_pretrained(kind)

    def file(self, name: str) -> Path | None:
        """A file of the folder or the repository, fetched; None where there is none."""
        if self.folder is None:
            return self._fetched(name)
        found = self.folder / name
        return found if found.is_file() else None

    def load(self, task: Task, device: torch.device) -> tuple[nn.Module, str]:
        """The model, and the digest of its weights.

        Raises:
            TeacherError: it cannot be loaded, lacks weights, or has pickled ones alone.
        """
        before = self._fingerprint()
        model = self.base._load(task, device, self.config_for(task), lacks=self._head.keys())
        if self.adapter is not None:
            # On the CPU whatever the device, so that the sums round the same everywhere.
            with self._explained():
                model = merged(model, self.adapter, allow_pickle=self.loading.allow_pickle)
        origin = {
            "files": before or self._fingerprint(),
            "class": type(model).__name__,
            "config": json_digest(model.config.to_diff_dict()),
            "dtype": dtype_name(model),
            "allow_pickle": self.loading.allow_pickle,
            "transformers": transformers.__version__,
        }
        unsure = self.loading.trust_remote_code or not origin["files"]
        if unsure or origin["files"] != self._fingerprint():
            digest = weights_digest(model)
        else:
            digest = kept(origin, lambda: weights_digest(model))
        return model.to(device), digest

    def _load(
        self, task: Task, device: torch.device, config: Any, *, lacks: Collection[str]
    ) -> Any:
        """The model, without what an adapter brings.

        Args:
            config: with the number of classes.
            lacks: weights that may be missing, or be those of another head.
        """
        loading = self.loading
        options: dict[str, Any] = {}
        if lacks and task.has_classes:
            options |= {"num_labels": config.num_labels, "ignore_mismatched_sizes": True}
        auto_class = getattr(transformers, task.auto_class)
        if loading.attn_implementation is not None:
            options["attn_implementation"] = loading.attn_implementation
        if loading.gguf_file is None:
            self._check_safe()
            options["use_safetensors"] = None if loading.allow_pickle else True
        elif hasattr(transformers, "GgufConfig"):
            # Later releases else compute on packed weights wherever they have a kernel for it.
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        dtype = loading.dtype or (torch.float32 if device.type == "cpu" else "auto")
        # transformers fills what a checkpoint lacks with random numbers and a warning.
        with _unsaid() if lacks else nullcontext():
            model, report = self._from_pretrained(
                auto_class, dtype=dtype, output_loading_info=True, **options
            )
        if task.name == "encoder" and any(n.startswith("pooler.") for n in report["missing_keys"]):
            model.pooler = None  # made at random, where a checkpoint has none; nothing reads it
            report["missing_keys"] = [
                name for name in report["missing_keys"] if not name.startswith("pooler.")
            ]
        others = {name for name, *_ in report["mismatched_keys"]}
        missing = sorted({*report["missing_keys"], *others} - set(lacks))
        if missing:
            raise TeacherError(
                f"the {self.role} {quoted(self.path)} has no weights for {quoted(missing[0])} and "
                f"{len(missing) - 1} others; pass {_whole(task)}, its head included"
            )
        return model

    def _check_safe(self) -> None:
        """Refuse a folder of pickled weights before it is a puzzle what is missing."""
        if self.folder is None or self.loading.allow_pickle:
            return
        names = [file.name for file in self.folder.iterdir()]
        safe = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
        if not safe and any(
            re.fullmatch(r"pytorch_model.*\.bin(\.index\.json)?", n) for n in names
        ):
            raise self._only_pickled("pytorch_model")

    def _only_pickled(self, what: str) -> TeacherError:
        return TeacherError(
            f"the {self.role} {quoted(self.path)} has no safetensors but at most {what}.bin, a "
            "pickle, which can run code when it is loaded; convert it (from_pretrained, then "
            "save_pretrained, on a machine that may run it), or, if you trust where it comes "
            "from, pass allow_pickle=True (--allow-pickle)"
        )

    def _fingerprint(self) -> list[Any] | None:
        """Of the files that the weights come from; None where they cannot be told."""
        parts = [self] if self.adapter is None else [self, self.base]
        try:
            found = [fingerprint(part._weight_files()) for part in parts]
        except (OSError, TeacherError):
            return None
        return found if all(found) else None

    def _weight_files(self) -> list[Path]:
        folder, gguf = self.folder or self.adapter, self.loading.gguf_file
        if folder is None:
            known = self._fetched(gguf or "config.json")
            if known is None:
                return []
            folder = known.parent
            if gguf is not None:
                return [known]
        if gguf is not None:
            return [folder / gguf]
        endings = (".safetensors", ".bin", ".index.json", "adapter_config.json")
        return [file for file in folder.iterdir() if file.name.endswith(endings)]

    def _fetched(self, name: str) -> Path | None:
        """A file of the Hub repository in the local cache; None where it has no such file."""
        with self._explained():
            found = cached_file(
                self.path,
                name,
                revision=self.loading.revision,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        return None if found is None else Path(found)

    def _from_pretrained(self, kind: Any, **options: Any) -> Any:
        revision = self.commit or self.loading.revision
        if revision is not None:
            options["revision"] = revision
        if self.loading.gguf_file is not None:
            options["gguf_file"] = self.loading.gguf_file
        with self._explained():
            trusted = self.loading.trust_remote_code
            return kind.from_pretrained(self.path, trust_remote_code=trusted, **options)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the libraries raise into one line that says what to do."""
        try:
            yield
        except TeacherError:
            raise
        except _LOADING_ERRORS as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> TeacherError:
        text = re.sub(r"\s+", " ", str(error))
        who = f"the {self.role} {quoted(self.path)}"
        if "trust_remote_code" in text and not self.loading.trust_remote_code:
            return TeacherError(
                f"{who} comes with Python code of its own, which would run with your rights; read "
                "it, then allow it with trust_remote_code=True (--trust-remote-code)"
            )
        if "cannot be loaded with `safetensors`" in text:
            return self._only_pickled("pytorch_model")
        reason = quoted(text.split(". ")[0].rstrip("."), limit=300)[1:-1]
        folder = self.folder
        ggufs = [] if folder is None else sorted(file.name for file in folder.glob("*.gguf"))
        if ggufs and self.loading.gguf_file is None:
            advice = f"or name its GGUF: gguf_file={quoted(ggufs[0])} (--gguf-file)"
        else:
            advice = "whole, with its config"
        return TeacherError(
            f"{who} cannot be loaded: {reason}; pass the folder or Hub name of a transformers "
            f"model, {advice}"
        )


# What transformers and peft raise at files that are missing, torn, of another kind or malformed.
_LOADING_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def _unsaid() -> Iterator[None]:
    """No warnings of weights that are missing, where others take their place."""
    logging: Any = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def may_be_on_hub(path: str) -> bool:
    """Whether a name has the form `model` or `owner/model`."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) is not None


def folder_of(path: str) -> Path | None:
    """The folder that a path names; None if there is none."""
    return Path(path) if path and Path(path).is_dir() else None


def usable(device: str | torch.device | None) -> torch.device:
    """A device that works; CUDA before the CPU where none is given.

    Raises:
        TeacherError: it does not work.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TeacherError(
            f"the device {quoted(device)} cannot be used: {reason}; choose another with device= "
            "(--device)"
        ) from error
    return torch.device(device)


def _whole(task: Task) -> str:
    return task.is_a.replace("a ", "a whole ", 1)


def _is_of_tokenizer(file: Path) -> bool:
    # tokenizer.json, tokenizer_config.json, vocab.json, vocab.txt, tekken.json, spiece.model, …
    known = file.name.startswith(("tokenizer", "vocab", "tekken"))
    return known or file.suffix in (".model", ".tiktoken")
