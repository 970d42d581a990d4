"""Which tokenizers are the same: every difference that changes ids is refused and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, AutoTokenizer

from softlabels.errors import VocabularyMismatchError
from softlabels.inputs.tokenizer import TokenizerIdentity, check_same, identify


@pytest.fixture
def student(tokenizer: Any) -> Any:
    """The teacher's tokenizer, the test's own to change."""
    return AutoTokenizer.from_pretrained(tokenizer.name_or_path)


def refusal(student: Any, teacher: Any, *, messages: bool = False) -> str:
    with pytest.raises(VocabularyMismatchError) as error:
        check_same(student, identify(teacher), messages=messages)
    return str(error.value)


def test_the_same_tokenizer_from_disk_is_the_same(
    tokenizer: Any, student: Any, tmp_path: Path
) -> None:
    student.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert identify(one) == identify(student)
        check_same(one, identify(student), messages=True)


def test_an_identity_comes_back_from_its_json(tokenizer: Any) -> None:
    identity = identify(tokenizer)
    assert identity.size == 512
    assert identity.special_tokens == {"bos_token": 0, "eos_token": 2}
    assert TokenizerIdentity.model_validate_json(identity.model_dump_json()) == identity


def test_truncation_and_padding_are_no_part_of_a_tokenizer(tokenizer: Any, student: Any) -> None:
    student.pad_token = student.eos_token
    student(["one two three"], truncation=True, max_length=2, padding="max_length")
    state = json.loads(student.backend_tokenizer.to_str())
    assert state["truncation"]
    assert state["padding"]
    check_same(student, identify(tokenizer), messages=True)


def test_whether_an_added_token_is_special_is_no_part_of_a_tokenizer(
    tokenizer: Any, student: Any
) -> None:
    student.add_tokens([AddedToken("<|im_start|>", special=False, normalized=False)])
    check_same(student, identify(tokenizer))


def test_one_more_token_is_refused_with_both_sizes(tokenizer: Any, student: Any) -> None:
    student.add_tokens(["<|tool|>"])
    assert "has 513 tokens, the teacher's has 512" in refusal(student, tokenizer)
    assert "has 512 tokens, the teacher's has 513" in refusal(tokenizer, student)


def rebuilt(tokenizer: Any, change: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
    )


def test_swapped_ids_are_refused(tokenizer: Any) -> None:
    def swap(state: dict[str, Any]) -> None:
        vocabulary = state["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    check_same(rebuilt(tokenizer, lambda state: None), identify(tokenizer))
    assert "its tokens or their ids are others" in refusal(rebuilt(tokenizer, swap), tokenizer)


def test_other_merges_are_refused(tokenizer: Any) -> None:
    student = rebuilt(tokenizer, lambda state: state["model"]["merges"].reverse())
    assert student.encode("the other") != tokenizer.encode("the other")
    assert "splits text in another way" in refusal(student, tokenizer)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        ("normalizer", normalizers.Lowercase()),
        ("post_processor", TemplateProcessing(single="<|b|> $A", special_tokens=[("<|b|>", 1)])),
    ],
)
def test_another_way_of_splitting_text_is_refused(
    part: str, value: Any, tokenizer: Any, student: Any
) -> None:
    setattr(student.backend_tokenizer, part, value)
    assert student.encode("The text") != tokenizer.encode("The text")
    assert "splits text in another way" in refusal(student, tokenizer)


def test_an_added_token_that_eats_the_space_beside_it_is_refused(
    tokenizer: Any, student: Any
) -> None:
    for one, lstrip in ((tokenizer, False), (student, True)):
        if one is tokenizer:
            one = tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
        one.add_tokens([AddedToken("<|tool|>", lstrip=lstrip, normalized=False)])
    assert student.encode("a <|tool|>") != tokenizer.encode("a <|tool|>")
    assert "splits text in another way" in refusal(student, tokenizer)


def test_another_bos_is_refused_by_name(tokenizer: Any, student: Any) -> None:
    student.bos_token = "<|im_start|>"
    assert "its bos_token has id 1, the teacher's 0" in refusal(student, tokenizer)


def test_another_chat_template_is_refused_where_messages_were_labelled(
    tokenizer: Any, student: Any
) -> None:
    for template in ("{{ messages }}", None):
        student.chat_template = template
        assert "its chat template is another" in refusal(student, tokenizer, messages=True)
        check_same(student, identify(tokenizer))


def test_a_refusal_names_everything_that_differs_and_escapes_the_name(
    tokenizer: Any, student: Any
) -> None:
    student.add_tokens(["x\x1by"])
    student.eos_token = "<|im_start|>"
    student.name_or_path = "evil\x1b[2J"
    message = refusal(student, tokenizer)
    assert message.isprintable()
    assert r'"evil\u001b[2J"' in message
    for part in ("513 tokens", "eos_token has id 1"):
        assert part in message
