"""Students: of a size, of a config, pruned; and those that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_students import CONFIG, llama, phi

import softlabels as sl
from softlabels.errors import InputError, TeacherError, VocabularyMismatchError
from softlabels.training import StudentRecipe
from softlabels.training.prune import evenly, pruned
from softlabels.training.student import SIZES, build, check_labels, check_length, separate_head


def test_a_size_is_a_llama_over_the_labels_classes(finished_set: Path) -> None:
    labels = sl.LabelSet.open(finished_set)
    model = build(StudentRecipe(size="nano"), labels, seed=1)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size) == SIZES["nano"][:2]
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (512, 0, 2)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with pytest.raises(InputError, match=r"nano, tiny.*"):
        build(StudentRecipe(size="huge"), labels, seed=1)


def test_first_weights_depend_on_the_seed_alone(labels: sl.LabelSet) -> None:
    recipe = StudentRecipe(size="nano")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(recipe, labels, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (build(recipe, labels, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({**CONFIG, "vocab_size": 17}, VocabularyMismatchError, "17 classes.* 16"),
        ({"model_type": "no-such"}, InputError, "no-such"),
        ({**CONFIG, "num_attention_heads": 3}, InputError, "built"),
        ({**CONFIG, "auto_map": {"AutoModel": "m.M"}}, InputError, "never run"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    labels: sl.LabelSet, config: dict[str, Any], error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        build(StudentRecipe(config=config), labels, seed=0)


def test_without_transformers_it_says_what_to_install(
    labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'softlabels\[transformers\]'"):
        build(StudentRecipe(size="nano"), labels, seed=0)


def test_importing_the_trainer_loads_no_extra() -> None:
    code = (
        "import sys, softlabels.training, softlabels.training.plot; "
        "print(*{'transformers', 'matplotlib', 'safetensors', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_layers_are_kept_evenly_first_and_last_included() -> None:
    assert [evenly(n, 7) for n in (1, 2, 3, 7)] == [[0], [0, 6], [0, 3, 6], [0, 1, 2, 3, 4, 5, 6]]


def test_a_pruned_student_has_the_teachers_weights_in_fewer_layers(
    finished_set: Path, teacher_dir: Path, model: Any
) -> None:
    labels = sl.LabelSet.open(finished_set)
    ids = torch.arange(9).unsqueeze(0)
    whole = build(StudentRecipe(teacher=str(teacher_dir), layers=2), labels, seed=0).eval()
    assert torch.equal(whole(ids).logits, model(ids).logits)
    one = build(StudentRecipe(teacher=str(teacher_dir), layers=1), labels, seed=0)
    assert one.config.num_hidden_layers == len(one.model.layers) == 1
    own, first = one.model.layers[0].state_dict(), model.model.layers[0].state_dict()
    assert all(torch.equal(own[name], first[name]) for name in first)
    assert torch.equal(one.model.embed_tokens.weight, model.model.embed_tokens.weight)
    with pytest.raises(InputError, match=r"keep 3 layers.*has 2"):
        build(StudentRecipe(teacher=str(teacher_dir), layers=3), labels, seed=0)


def test_settings_that_each_layer_has_one_of_are_pruned_too() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=4, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, layer_types=kinds,
    )  # fmt: skip
    torch.manual_seed(0)
    whole = Gemma3ForCausalLM(config)
    one = pruned(whole, 2)
    assert one.config.layer_types == ["sliding_attention", "full_attention"]
    last, same = one.model.layers[1].state_dict(), whole.model.layers[3].state_dict()
    assert all(torch.equal(last[name], same[name]) for name in same)


def test_a_kind_that_calls_its_layers_otherwise_is_pruned_too() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    whole = GPT2LMHeadModel(
        GPT2Config(vocab_size=16, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=1)
    )
    one = pruned(whole, 2)
    assert one.config.n_layer == len(one.transformer.h) == 2
    last, same = one.transformer.h[1].state_dict(), whole.transformer.h[2].state_dict()
    assert all(torch.equal(last[name], same[name]) for name in same)


def test_a_teacher_of_another_vocabulary_or_of_pickles_is_not_pruned(
    labels: sl.LabelSet, finished_set: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(VocabularyMismatchError, match=r"512 classes.* 16"):
        build(StudentRecipe(teacher=str(teacher_dir), layers=1), labels, seed=0)
    llama().config.save_pretrained(tmp_path)
    torch.save(llama().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherError, match="no safetensors"):
        build(StudentRecipe(teacher=str(tmp_path), layers=1), labels, seed=0)


def test_a_teacher_with_another_tokenizer_is_not_pruned(
    finished_set: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    labels = sl.LabelSet.open(finished_set)
    shutil.copytree(teacher_dir, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(VocabularyMismatchError, match="tokens or their ids are others"):
        build(StudentRecipe(teacher=str(tmp_path / "other"), layers=1), labels, seed=0)


def others() -> dict[str, Any]:
    """Students whose logits are more than hidden states times a matrix."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    small = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    capped = Gemma2Config(**small, head_dim=8, final_logit_softcapping=30.0)
    scaled = GraniteConfig(**small, logits_scaling=4.0)
    return {
        "soft cap": Gemma2ForCausalLM(capped),
        "scaled": GraniteForCausalLM(scaled),
        "no transformer": torch.nn.Linear(2, 2),
    }


@pytest.mark.parametrize("name", ["soft cap", "scaled", "no transformer"])
def test_a_head_with_more_to_it_is_not_taken_apart(name: str) -> None:
    torch.manual_seed(0)
    assert separate_head(others()[name]) is None


def test_a_plain_head_is_taken_apart_with_its_bias_and_the_mode_stays() -> None:
    for model in (llama(), llama(tie_word_embeddings=True), phi()):
        model.train()
        assert separate_head(model) is model.lm_head
        assert model.training


def test_labels_that_are_not_about_the_next_token_are_refused(
    labels: sl.LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = labels.plan.model_copy(update={"hard_label_alignment": "same"})
    monkeypatch.setattr(labels, "plan", same)
    with pytest.raises(InputError, match="causal LMs"):
        check_labels(labels)


def test_a_student_for_fewer_positions_than_a_record_has_is_refused() -> None:
    check_length(llama(max_position_embeddings=8), 8)
    with pytest.raises(InputError, match="up to 9 tokens, the student takes 8"):
        check_length(llama(max_position_embeddings=8), 9)


def test_a_list_of_end_tokens_is_no_setting_of_the_layers() -> None:
    whole = llama(num_hidden_layers=3, eos_token_id=[2, 5, 7])
    assert pruned(whole, 2).config.eos_token_id == [2, 5, 7]
