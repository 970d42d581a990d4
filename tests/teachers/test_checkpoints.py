"""How models are loaded: GGUFs, adapters, pickles, their own code, attention and compilation."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import CLASSES, built
from checkpoints import COMMIT, as_peft, into_hub_cache, save_adapter, write_gguf
from encoders import built as encoder

from softlabels import teachers
from softlabels.errors import TeacherError
from softlabels.teachers import causal_lm, resolve
from softlabels.teachers.identity import weights_digest

IDS = torch.arange(5, 14).unsqueeze(0)
NONE, ALL = torch.zeros_like(IDS, dtype=torch.bool), torch.ones_like(IDS, dtype=torch.bool)
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}


def answer(teacher: Any) -> torch.Tensor:
    return torch.cat(list(teacher.logits(IDS, ALL, padding=NONE)))


@torch.no_grad()
def oracle(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(IDS).logits[0]
    return logits


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small Llama as a GGUF, exact and in 8-bit blocks."""
    folder = tmp_path_factory.mktemp("ggufs") / "mine"
    folder.mkdir()
    torch.manual_seed(0)
    model = built("Llama")
    write_gguf(model, folder / "exact.gguf")
    write_gguf(model, folder / "Q8_0.gguf", quantised=True)
    return folder


def test_a_gguf_gives_the_logits_and_the_digest_of_the_model_it_was_made_of(
    ggufs: Path, llama: Any
) -> None:
    for teacher in (resolve(ggufs / "exact.gguf"), causal_lm(ggufs, gguf_file="exact.gguf")):
        torch.testing.assert_close(answer(teacher), oracle(llama), **TOLERANCE)
        assert teacher.identity.weights == weights_digest(llama)
        assert teacher.identity.name == "exact"
        assert (teacher.classes, teacher.max_length) == (CLASSES, 64)


def test_a_gguf_of_blocks_is_unpacked_as_the_gguf_package_unpacks_it(
    ggufs: Path, llama: Any
) -> None:
    import gguf

    teacher: Any = causal_lm(ggufs / "Q8_0.gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if parameter.ndim == 2 and parameter.shape[1] % 32 == 0:
                blocks = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, kind)))
                torch.testing.assert_close(teacher.model.state_dict()[name], parameter.data)
    torch.testing.assert_close(answer(teacher), oracle(llama), **TOLERANCE)
    assert causal_lm(ggufs / "Q8_0.gguf", dtype="bfloat16").identity.dtype == "bfloat16"


def test_the_name_of_a_gguf_s_file_is_no_part_of_what_must_match(
    ggufs: Path, tmp_path: Path
) -> None:
    before = causal_lm(ggufs / "Q8_0.gguf").identity
    shutil.copy(ggufs / "Q8_0.gguf", tmp_path / "other.gguf")
    after = causal_lm(tmp_path / "other.gguf").identity
    assert after == before.model_copy(update={"name": "other"})


def test_what_is_no_gguf_or_is_not_named_is_an_error_that_helps(
    ggufs: Path, tmp_path: Path
) -> None:
    with pytest.raises(TeacherError, match=r"no-such\.gguf\": there is no such file"):
        causal_lm("no-such.gguf")
    with pytest.raises(TeacherError, match=r'name its GGUF: gguf_file="Q8_0.gguf"'):
        causal_lm(ggufs)
    (tmp_path / "torn.gguf").write_bytes((ggufs / "exact.gguf").read_bytes()[:300])
    with pytest.raises(TeacherError, match="cannot be loaded"):
        causal_lm(tmp_path / "torn.gguf").identity


@pytest.fixture
def base(tmp_path: Path, llama: Any) -> Path:
    llama.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("named_by", ["config", "argument"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_gives_what_peft_gives_and_is_merged(
    options: dict[str, Any], named_by: str, tmp_path: Path, base: Path
) -> None:
    model = type(built("Llama")).from_pretrained(base)
    plain = oracle(model)
    wrapped = save_adapter(model, tmp_path / "lora", **options)
    expected = oracle(wrapped)
    assert float((expected - plain).abs().max()) > 0.05
    given: dict[str, Any] = {}
    if named_by == "argument":
        rename_base(tmp_path / "lora", "no/such-model")
        given = {"base": base}
    teacher: Any = teachers.pretrained(tmp_path / "lora", **given)
    torch.testing.assert_close(answer(teacher), expected, **TOLERANCE)
    assert type(teacher.model).__name__ == "LlamaForCausalLM"
    assert teacher._head_is_separate
    assert teacher.can_pack
    assert (teacher.classes, teacher.identity.name) == (CLASSES, "lora")
    assert teacher.identity.weights == weights_digest(teacher.model)
    assert teacher.identity.weights != causal_lm(base).identity.weights


def rename_base(adapter: Path, name: str | None) -> None:
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": name}
    file.write_text(json.dumps(config))


def test_the_digest_covers_the_base_and_the_adapter(tmp_path: Path, base: Path) -> None:
    model_class = type(built("Llama"))
    save_adapter(model_class.from_pretrained(base), tmp_path / "lora")
    save_adapter(model_class.from_pretrained(base), tmp_path / "other")
    changed = model_class.from_pretrained(base)
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    changed.save_pretrained(tmp_path / "changed")
    found = [
        causal_lm(tmp_path / "lora").identity.weights,
        causal_lm(tmp_path / "other").identity.weights,
        causal_lm(tmp_path / "lora", base=tmp_path / "changed").identity.weights,
        causal_lm(base).identity.weights,
    ]
    assert len(set(found)) == 4
    assert causal_lm(tmp_path / "lora").identity.weights == found[0]


def test_an_adapter_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_class, lora = type(built("Llama")), tmp_path / "lora"
    save_adapter(model_class.from_pretrained(base), lora)

    def refused(match: str, folder: Path = lora, **options: Any) -> None:
        with pytest.raises(TeacherError, match=match) as error:
            causal_lm(folder, **options).identity
        assert str(error.value).isprintable()

    refused(r"leave out base= \(--base\)", base, base=lora)
    refused("is an adapter itself", base=lora)
    built("Llama", num_hidden_layers=1).save_pretrained(tmp_path / "short")
    refused("do not fit", base=tmp_path / "short")
    built("Llama", num_hidden_layers=3).save_pretrained(tmp_path / "long")
    refused("do not fit", base=tmp_path / "long")
    built("Llama", hidden_size=64).save_pretrained(tmp_path / "wide")
    refused("cannot be loaded: .*size mismatch", base=tmp_path / "wide")
    refused("base model .* there is no such folder", base=tmp_path / "none")
    rename_base(lora, None)
    refused(r"does not name the model .* base= \(--base\)")
    rename_base(lora, str(base))
    shutil.copy(base / "config.json", lora / "config.json")
    refused("holds both a model and an adapter")
    (lora / "config.json").unlink()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        refused(r"pip install 'softlabels\[peft\]'")
    weights = peft.utils.load_peft_weights(str(lora))
    (lora / "adapter_model.safetensors").unlink()
    torch.save(weights, lora / "adapter_model.bin")
    refused("no adapter_model.safetensors.*--allow-pickle")
    assert causal_lm(lora, allow_pickle=True).identity.weights
    (lora / "adapter_config.json").write_text("{")
    refused("cannot be loaded")


@pytest.mark.parametrize(
    ("base_name", "name", "task_type", "labels"),
    [
        ("BertForMaskedLM", "BertForTokenClassification", "TOKEN_CLS", 7),
        ("BertForMaskedLM", "BertForTokenClassification", None, 5),
        ("BertForTokenClassification", "BertForTokenClassification", "TOKEN_CLS", 3),
        ("BertModel", "BertForSequenceClassification", "SEQ_CLS", 2),
        ("RobertaForMaskedLM", "RobertaForSequenceClassification", "SEQ_CLS", 3),
        ("LlamaForCausalLM", "LlamaForSequenceClassification", "SEQ_CLS", 5),
    ],
)
def test_a_classifier_whose_head_is_in_its_adapter_alone_gives_what_peft_gives(
    base_name: str, name: str, task_type: str | None, labels: int, tmp_path: Path
) -> None:
    encoder(base_name).save_pretrained(tmp_path / "base")
    wrapped = save_classifier(name, tmp_path, task_type=task_type, num_labels=labels)
    first = "Sequence" in name
    asked = None if task_type else "token_classifier"
    teacher: Any = teachers.pretrained(tmp_path / "lora", task=asked)  # type: ignore[arg-type]
    assert teacher.task.name == ("sequence_classifier" if first else "token_classifier")
    assert teacher.classes == labels
    assert "model" not in vars(teacher)
    wanted = ALL.clone()
    wanted[:, 1:] = not first
    with torch.no_grad():
        expected = wrapped(IDS, torch.ones_like(IDS)).logits.view(-1, labels)
    found = torch.cat(list(teacher.logits(IDS, wanted, padding=NONE)))
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert type(teacher.model).__name__ == name
    assert teacher.identity.classes == labels
    again: Any = teachers.pretrained(tmp_path / "lora", task=asked)  # type: ignore[arg-type]
    assert again.identity == teacher.identity


def save_classifier(name: str, folder: Path, **options: Any) -> Any:
    """An adapter with a head of its own, for the model in the folder "base"."""
    import transformers

    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # that the head is new is meant
    labels = options.pop("num_labels")
    model = getattr(transformers, name).from_pretrained(
        folder / "base", num_labels=labels, ignore_mismatched_sizes=True
    )
    transformers.utils.logging.set_verbosity(verbosity)
    llama = name.startswith("Llama")
    targets = ["q_proj", "up_proj"] if llama else ["query", "value"]
    head = {"modules_to_save": ["score" if llama else "classifier"]}
    return save_adapter(model, folder / "lora", target_modules=targets, **head, **options)


def test_what_neither_an_adapter_nor_its_base_has_is_refused(tmp_path: Path) -> None:
    encoder("BertForMaskedLM").save_pretrained(tmp_path / "base")  # which has no pooler
    save_classifier("BertForSequenceClassification", tmp_path, task_type="SEQ_CLS", num_labels=3)
    with pytest.raises(TeacherError, match=r'no weights for "bert\.pooler\.dense\.bias" and 1 o'):
        teachers.pretrained(tmp_path / "lora").identity
    with pytest.raises(TeacherError, match="is a sequence classifier and not a masked"):
        teachers.masked_lm(tmp_path / "lora")


def test_an_adapter_that_changes_no_weights_is_refused(tmp_path: Path, base: Path) -> None:
    model = type(built("Llama")).from_pretrained(base)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    as_peft(model, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(TeacherError, match="PROMPT_TUNING, which changes no weights"):
        causal_lm(tmp_path / "prompt").identity


def test_an_adapter_has_its_own_tokenizer_or_its_base_s(
    tmp_path: Path, teacher_dir: Path, tokenizer: Any
) -> None:
    model = type(built("Llama")).from_pretrained(teacher_dir)
    save_adapter(model, tmp_path / "lora")
    found: Any = causal_lm(tmp_path / "lora").tokenizer
    assert found.get_vocab() == tokenizer.get_vocab()
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<own>"])
    own.save_pretrained(tmp_path / "lora")
    found = causal_lm(tmp_path / "lora").tokenizer
    assert "<own>" in found.get_vocab()


def test_models_and_adapters_of_the_hub_are_found_in_its_cache(
    tmp_path: Path, base: Path, hub: Path
) -> None:
    save_adapter(type(built("Llama")).from_pretrained(base), tmp_path / "lora")
    rename_base(tmp_path / "lora", "owner/base")
    into_hub_cache(base, hub, "owner/base")
    into_hub_cache(tmp_path / "lora", hub, "owner/lora")
    whole, adapted = causal_lm("owner/base"), causal_lm("owner/lora")
    assert whole.identity == causal_lm(base).identity.model_copy(
        update={"name": "owner/base", "revision": COMMIT}
    )
    assert adapted.identity.revision == COMMIT
    local = causal_lm(tmp_path / "lora", base=base)
    assert adapted.identity.weights == local.identity.weights
    assert adapted.identity.name == "owner/lora"
    torch.testing.assert_close(answer(adapted), answer(local))


def pickled(folder: Path, model: Any) -> None:
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def test_pickled_weights_are_loaded_only_if_they_are_allowed(
    tmp_path: Path, llama: Any, hub: Path
) -> None:
    llama.config.architectures = ["LlamaForCausalLM"]
    pickled(tmp_path / "mine", llama)
    into_hub_cache(tmp_path / "mine", hub)
    for name in (tmp_path / "mine", "owner/model"):
        with pytest.raises(TeacherError, match=r"pytorch_model\.bin.*convert it.*--allow-pickle"):
            causal_lm(name).identity
        allowed = causal_lm(name, allow_pickle=True)
        torch.testing.assert_close(answer(allowed), oracle(llama), **TOLERANCE)
        assert allowed.identity.weights == weights_digest(llama)


def test_safetensors_are_taken_before_a_pickle(tmp_path: Path, llama: Any) -> None:
    pickled(tmp_path / "mine", built("Llama"))
    llama.save_pretrained(tmp_path / "mine")
    for allow in (False, True):
        found = causal_lm(tmp_path / "mine", allow_pickle=allow).identity.weights
        assert found == weights_digest(llama)


def with_own_code(folder: Path, model: Any) -> None:
    """A Llama whose classes come with it, and whose logits are all doubled."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n"
        "    model_type = 'own-llama'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n"
        "    config_class = OwnConfig\n"
        "    def forward(self, *args, **kwargs):\n"
        "        found = super().forward(*args, **kwargs)\n"
        "        found.logits = found.logits * 2\n"
        "        return found\n"
    )


def test_a_model_s_own_code_runs_only_if_it_is_trusted(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    with_own_code(tmp_path / "own", llama)
    with pytest.raises(TeacherError, match=r"Python code of its own.*\(--trust-remote-code\)") as e:
        causal_lm(tmp_path / "own")
    assert "http" not in str(e.value)
    trusted = causal_lm(tmp_path / "own", trust_remote_code=True)
    torch.testing.assert_close(answer(trusted), 2 * oracle(llama), **TOLERANCE)
    assert trusted.identity.weights == weights_digest(llama)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_the_attention_asked_for_is_used_and_is_no_part_of_the_identity(
    name: str, base: Path, llama: Any
) -> None:
    teacher: Any = causal_lm(base, attn_implementation=name)
    assert teacher.model.config._attn_implementation == name
    torch.testing.assert_close(answer(teacher), oracle(llama), **TOLERANCE)
    assert teacher.identity == causal_lm(base).identity


def test_an_attention_that_there_is_none_of_is_refused(base: Path) -> None:
    with pytest.raises(TeacherError, match=r"cannot be loaded: .*nonsense"):
        causal_lm(base, attn_implementation="nonsense").identity


@pytest.mark.filterwarnings("ignore:.*its head cannot be run apart")
@pytest.mark.parametrize("name", ["Llama", "OPT"])
def test_a_compiled_teacher_gives_the_same_and_is_compiled_once_for_all_lengths(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    compile_ = torch.compile

    def eager(module: Any, **options: Any) -> Any:
        assert options == {"dynamic": True}
        compiled.append(module)
        return compile_(module, backend="eager", **options)  # a C++ compiler would take minutes

    monkeypatch.setattr(torch, "compile", eager)
    model = built(name)
    teacher: Any = causal_lm(model, compile=True)
    torch.testing.assert_close(answer(teacher), oracle(model), **TOLERANCE)
    ids, none = IDS[:, :4].repeat(3, 1), NONE[:, :4].repeat(3, 1)
    found = torch.cat(list(teacher.logits(ids, ~none, padding=none)))
    torch.testing.assert_close(found, oracle(model)[:4].repeat(3, 1), **TOLERANCE)
    assert compiled == [model if name == "OPT" else model.base_model]
    assert teacher.identity == causal_lm(model).identity


def test_what_is_loaded_cannot_be_loaded_in_another_way(llama: Any) -> None:
    for option in ({"dtype": "bfloat16"}, {"device": "cpu"}, {"attn_implementation": "eager"}):
        with pytest.raises(TeacherError, match="a loaded LlamaForCausalLM is labelled as it is"):
            causal_lm(llama, **option)
