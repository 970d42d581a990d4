"""Which teacher it was: every changed weight is noticed, and what does not matter is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from architectures import CLASSES, built

from softlabels.errors import TeacherError
from softlabels.teachers import TeacherIdentity, causal_lm
from softlabels.teachers.identity import dtype_name, weights_digest


class Weights(torch.nn.Module):
    """A module with these tensors as buffers."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def test_a_digest_is_of_names_dtypes_shapes_and_bytes_by_ascending_name() -> None:
    module = Weights(b=torch.tensor([[1, 2]], dtype=torch.int16), a=torch.tensor(1.0))
    data = b"a|torch.float32|()|" + b"\x00\x00\x80\x3f" + b"b|torch.int16|(1, 2)|\x01\x00\x02\x00"
    assert weights_digest(module) == xxhash.xxh3_128_hexdigest(data)


def test_everything_that_changes_a_weight_changes_the_digest() -> None:
    zeros = torch.zeros(2, 3)
    modules = [
        Weights(a=zeros),
        Weights(a=-zeros),
        Weights(a=zeros + torch.tensor([0, 0, 1e-45])),
        Weights(a=torch.zeros(3, 2)),
        Weights(a=torch.zeros(6)),
        Weights(a=zeros.to(torch.int32)),
        Weights(b=zeros),
        Weights(a=zeros, b=torch.zeros(0)),
        Weights(a=zeros.bool()),
        Weights(a=zeros.to(torch.float8_e4m3fn)),
        Weights(a=zeros.to(torch.complex64)),
        Weights(),
    ]
    assert len({weights_digest(module) for module in modules}) == len(modules)


def test_how_a_tensor_lies_in_memory_does_not_change_the_digest() -> None:
    values = torch.arange(6.0).view(2, 3)
    columns = values.t().contiguous().t()
    assert not columns.is_contiguous()
    wide = torch.cat([values, values], 1)[:, :3]
    expected = weights_digest(Weights(a=values))
    assert weights_digest(Weights(a=columns)) == expected
    assert weights_digest(Weights(a=wide)) == expected
    assert weights_digest(Weights(a=values.clone().requires_grad_())) == expected


def test_the_dtype_is_the_first_floating_parameter_s() -> None:
    assert dtype_name(torch.nn.Linear(2, 2).to(torch.bfloat16)) == "bfloat16"
    assert dtype_name(torch.nn.Linear(2, 2)) == "float32"
    assert dtype_name(Weights(a=torch.zeros(2))) is None


def test_one_changed_weight_makes_another_teacher(llama: Any) -> None:
    before = causal_lm(llama).identity
    assert causal_lm(built("Llama", attention_dropout=0.5)).identity.weights != before.weights
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 5].add_(1e-6)
    after = causal_lm(llama).identity
    assert after.weights != before.weights
    assert after == before.model_copy(update={"weights": after.weights})


@pytest.mark.parametrize("name", ["Llama", "Llama, tied", "GPT2"])
def test_a_teacher_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    model = built(name)
    model.save_pretrained(tmp_path / "mine")
    found = causal_lm(tmp_path / "mine").identity
    assert found.weights == causal_lm(model).identity.weights
    assert found.name == "mine"
    assert (found.engine, found.classes, found.dtype) == ("transformers", CLASSES, "float32")
    assert TeacherIdentity.model_validate_json(found.model_dump_json()) == found


def test_a_name_is_never_a_path(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    llama.save_pretrained(folder)
    loaded = type(llama).from_pretrained(folder)
    monkeypatch.chdir(folder)
    for model in (folder, str(folder) + "/", ".", "../mine", loaded):
        assert causal_lm(model).identity.name == "mine"
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(folder)
    assert causal_lm(loaded).identity.name == "mine"
    assert causal_lm(llama).identity.name == "model"
    loaded.name_or_path = "owner/model"
    assert causal_lm(loaded).identity.name == "owner/model"


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./no", "../no", "a/b/c", "", " ", "no\x1b[2J", "~/no"]
)
def test_a_missing_folder_is_refused_in_one_line_without_an_address(name: str) -> None:
    with pytest.raises(TeacherError, match="there is no such folder") as error:
        causal_lm(name)
    message = str(error.value)
    assert "http" not in message
    assert message.isprintable()


def test_a_name_that_is_neither_folder_nor_in_reach_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match=r'^the teacher "no-such/model" cannot be loaded') as e:
        causal_lm("no-such/model")
    assert str(e.value).isprintable()


def test_a_checkpoint_without_its_head_is_refused_and_not_filled_with_random_numbers(
    tmp_path: Path, llama: Any
) -> None:
    llama.model.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r'no weights for "lm_head\.weight"'):
        causal_lm(tmp_path).identity


def broken(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "torn weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif what == "no JSON":
        (folder / "config.json").write_text("{")
    elif what == "unknown kind":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "zzz"}))
    elif what == "another width":
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    elif what == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "what",
    ["no weights", "torn weights", "no JSON", "unknown kind", "another width", "no config"],
)
def test_a_folder_that_is_no_causal_lm_is_refused_in_one_line(
    what: str, tmp_path: Path, llama: Any
) -> None:
    llama.save_pretrained(tmp_path)
    broken(tmp_path, what)
    with pytest.raises(TeacherError, match=r"cannot be loaded: .*; pass the folder") as error:
        causal_lm(tmp_path).identity
    assert str(error.value).isprintable()


def test_an_encoder_with_a_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    with pytest.raises(TeacherError, match="T5ForConditionalGeneration is no causal"):
        causal_lm(T5ForConditionalGeneration(T5Config(**sizes)))


def test_a_teacher_has_its_own_tokenizer_or_the_one_it_is_given(
    teacher_dir: Path, tokenizer: Any, model: Any, llama: Any
) -> None:
    for own in (causal_lm(teacher_dir), causal_lm(model)):
        assert own.tokenizer is not None
        assert own.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert causal_lm(llama, tokenizer=tokenizer).tokenizer is tokenizer
    assert causal_lm(teacher_dir, tokenizer=tokenizer).tokenizer is tokenizer


def test_a_teacher_that_comes_without_a_tokenizer_has_none(tmp_path: Path, llama: Any) -> None:
    llama.save_pretrained(tmp_path)
    assert causal_lm(llama).tokenizer is None
    assert causal_lm(tmp_path).tokenizer is None


def test_a_broken_tokenizer_is_an_error_and_not_none(tmp_path: Path, teacher_dir: Path) -> None:
    folder = Path(shutil.copytree(teacher_dir, tmp_path / "copy"))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(TeacherError, match="cannot be loaded"):
        causal_lm(folder).tokenizer


def test_the_same_weights_under_another_rotary_base_are_another_teacher(
    teacher_dir: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(teacher_dir, tmp_path / "copy"))
    before = causal_lm(copy).identity
    config = json.loads((copy / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 12_345.0
    (copy / "config.json").write_text(json.dumps(config))
    after = causal_lm(copy).identity
    assert after.weights == before.weights
    assert after.config != before.config


def test_a_version_of_the_engine_in_the_config_changes_nothing(
    teacher_dir: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(teacher_dir, tmp_path / "copy"))
    before = causal_lm(copy).identity
    config = json.loads((copy / "config.json").read_text())
    config |= {"transformers_version": "5.0.0", "_model_name_or_path": "elsewhere"}
    (copy / "config.json").write_text(json.dumps(config))
    assert causal_lm(copy).identity == before
