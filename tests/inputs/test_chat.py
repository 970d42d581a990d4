"""Conversations: the template's text, and labels only where an assistant's token is predicted."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlabels.errors import InputError
from softlabels.inputs.chat import render
from softlabels.inputs.digests import input_digests
from softlabels.inputs.preparation import Preparation
from softlabels.inputs.prepare import prepare
from softlabels.inputs.rows import to_table
from softlabels.inputs.windows import Windows

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
REWRITES = (  # the thoughts of earlier turns vanish, as in some reasoning models
    "{% for m in messages %}[{{ m['role'] }}]"
    "{% if loop.last %}<think>{% endif %}{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def chatty(tokenizer: Any) -> Any:
    """A tokenizer of the test's own, to change."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer.name_or_path)


def windows_of(conversations: Any, tokenizer: Any, **options: Any) -> Windows:
    settings = {"kind": "messages", "max_length": 10_000, **options}
    column = pa.chunked_array([pa.array(conversations)])
    return prepare(column, Preparation(**settings), tokenizer=tokenizer, classes=512)


def written(messages: list[dict[str, str]]) -> tuple[str, list[bool]]:
    """The template by hand: the text, and for every byte whether the assistant wrote it."""
    text, ours = "", []
    for message in messages:
        opening = f"<|im_start|>{message['role']}\n"
        body = f"{message['content']}<|im_end|>\n"
        text += opening + body
        ours += [False] * len(opening.encode())
        ours += [message["role"] == "assistant"] * len(body.encode())
    return text, ours


def wanted_by_bytes(messages: list[dict[str, str]], tokenizer: Any) -> list[bool]:
    """The slow oracle: position t is wanted if token t + 1 begins in a byte the assistant wrote."""
    text, ours = written(messages)
    ids = tokenizer.encode(text, add_special_tokens=False)
    # In this byte-level vocabulary a token has one character for each of its bytes.
    sizes = [len(tokenizer.convert_ids_to_tokens(i)) for i in ids]
    assert sum(sizes) == len(ours)
    first_bytes = [sum(sizes[:t]) for t in range(len(ids))]
    return [
        t + 1 < len(ids) and ours[_start_of_character(text, first_bytes[t + 1])]
        for t in range(len(ids))
    ]


def _start_of_character(text: str, byte: int) -> int:
    data = text.encode()
    while data[byte] & 0xC0 == 0x80:
        byte -= 1
    return byte


turns = st.tuples(
    st.just({"role": "user", "content": "first"}),
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system", "tool"]),
                "content": st.text("ab é🤗\n<|", max_size=6) | st.just("several plain words"),
            }
        ),
        min_size=1,
        max_size=5,
    ),
).map(lambda pair: [pair[0], *pair[1]])


@given(turns)
@example([USER, ANSWER])
@example([USER, ANSWER, ANSWER])
@example([USER, {"role": "assistant", "content": ""}, USER])
@settings(deadline=None, max_examples=120)
def test_labelled_are_exactly_the_positions_that_predict_what_an_assistant_wrote(
    tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    expected = wanted_by_bytes(messages, tokenizer)
    found = windows_of([messages], tokenizer, assistant_only=True)
    if any(expected):
        assert found.wanted.tolist() == expected
        assert found.token_ids.tolist() == tokenizer.encode(
            written(messages)[0], add_special_tokens=False
        )
    else:
        assert found.failures == ((0, "no assistant turn: nothing to label"),)


def test_labelled_tokens_are_the_answer_and_its_closing_mark(tokenizer: Any) -> None:
    messages = [USER, ANSWER, {"role": "user", "content": "And?"}, {**ANSWER, "content": "So."}]
    found = windows_of([messages], tokenizer, assistant_only=True)
    predicted = found.hard_labels[found.wanted]
    assert tokenizer.decode(predicted) == "Because.<|im_end|>\nSo.<|im_end|>\n"


@given(turns)
@settings(deadline=None, max_examples=40)
def test_without_assistant_only_every_position_is_labelled(
    tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    found = windows_of([messages], tokenizer)
    expected = tokenizer.encode(written(messages)[0], add_special_tokens=False)
    assert found.token_ids.tolist() == expected
    assert found.wanted.all()


def test_a_bos_that_the_template_writes_is_not_written_twice(chatty: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = chatty.bos_token
    chatty.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, chatty.bos_token_id)]
    )
    chatty.chat_template = "{{ bos_token }}" + chatty.chat_template
    for assistant_only in (False, True):
        found = windows_of([[USER, ANSWER]], chatty, assistant_only=assistant_only)
        ids = found.token_ids.tolist()
        assert ids[0] == chatty.bos_token_id
        assert ids.count(chatty.bos_token_id) == 1
    assert chatty.decode(found.hard_labels[found.wanted]) == "Because.<|im_end|>\n"


def test_windows_without_an_assistant_s_token_are_left_out_and_keep_their_numbers(
    tokenizer: Any,
) -> None:
    messages = [{**USER, "content": "why " * 40}, ANSWER]
    whole = windows_of([messages], tokenizer, assistant_only=True)
    cut = windows_of([messages], tokenizer, assistant_only=True, max_length=16, overlap=4)
    assert cut.parts[0] > 0
    assert (cut.starts == cut.parts * 12).all()
    assert int(cut.wanted.sum()) == int(whole.wanted.sum())
    assert tokenizer.decode(cut.hard_labels[cut.wanted]) == "Because.<|im_end|>\n"


def test_a_conversation_whose_answer_is_cut_off_is_a_failure_and_not_dropped(
    tokenizer: Any,
) -> None:
    messages = [{**USER, "content": "why " * 80}, ANSWER]
    options = {"assistant_only": True, "max_length": 60, "on_long": "truncate"}
    found = windows_of([messages, [USER, ANSWER] * 8], tokenizer, **options)
    assert found.failures == ((0, "no assistant turn in its first 60 tokens: nothing to label"),)
    assert found.rows.tolist() == [1]
    assert found.truncated == 1


@pytest.mark.parametrize("messages", [[], None])
def test_a_conversation_without_messages_is_a_failure(messages: Any, tokenizer: Any) -> None:
    found = windows_of([messages, [USER, ANSWER]], tokenizer)
    assert found.failures == ((0, "empty: it has no tokens"),)
    assert found.rows.tolist() == [1]


def test_a_null_message_is_a_failure(tokenizer: Any) -> None:
    found = windows_of([[USER, None, ANSWER], [USER, ANSWER]], tokenizer)
    assert found.failures == ((0, "message 1 is null"),)


def test_fields_that_another_message_has_are_absent_and_not_null(chatty: Any) -> None:
    chatty.chat_template = (
        "{% for m in messages %}{{ m['role'] }}{% if 'name' in m %}:{{ m['name'] }}{% endif %} "
        "{{ m['content'] }}{% endfor %}"
    )
    found = windows_of([[USER, {**ANSWER, "name": "Ann"}]], chatty)
    assert chatty.decode(found.token_ids) == "user Why?assistant:Ann Because."


def test_a_template_that_rewrites_earlier_turns_is_refused_by_message(chatty: Any) -> None:
    chatty.chat_template = REWRITES
    conversations = [[USER, ANSWER, USER, ANSWER], [USER, ANSWER]]
    found = windows_of(conversations, chatty, assistant_only=True)
    assert [row for row, _ in found.failures] == [0, 1]
    assert "does not write message 1 as a continuation" in found.failures[0][1]
    assert not windows_of(conversations, chatty).failures


def test_a_conversation_that_the_template_refuses_is_a_failure_with_its_words(chatty: Any) -> None:
    chatty.chat_template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
        + chatty.chat_template
    )
    for assistant_only in (False, True):
        found = windows_of([[ANSWER], [USER, ANSWER]], chatty, assistant_only=assistant_only)
        assert found.rows.tolist() == [1]
        assert found.failures[0][0] == 0
        assert found.failures[0][1].endswith("TemplateError: user first")


def test_messages_without_a_chat_template_are_refused(chatty: Any) -> None:
    chatty.chat_template = None
    with pytest.raises(InputError, match="tokenizer has no chat template"):
        windows_of([[USER, ANSWER]], chatty)


def test_a_tokenizer_that_does_not_say_where_tokens_stand_is_refused_for_assistant_only() -> None:
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    slow.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert len(windows_of([[USER, ANSWER]], slow)) == 1
    with pytest.raises(InputError, match="ByT5Tokenizer does not tell; use a fast tokenizer"):
        windows_of([[USER, ANSWER]], slow, assistant_only=True)


def test_what_a_template_puts_before_a_first_assistant_turn_is_not_the_assistants(
    tokenizer: Any,
) -> None:
    from copy import deepcopy

    from softlabels.inputs.chat import assistant_spans, render

    own = deepcopy(tokenizer)
    own.chat_template = "<|im_start|>system\nBe kind.<|im_end|>\n" + tokenizer.chat_template
    messages = [
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]
    text = render(own, messages)
    spans = [text[start:stop] for start, stop in assistant_spans(own, messages, text)]
    assert spans == ["Hello<|im_end|>\n", "yes<|im_end|>\n"]


def test_whole_numbers_are_written_alike_whatever_other_rows_hold(chatty: Any) -> None:
    chatty.chat_template = "{% for m in messages %}{{ m.content }} {{ m.score }}{% endfor %}"
    alone, beside = (
        to_table([{"m": [{"role": "user", "content": "a", "score": 1}]}, *others]).column("m")
        for others in ([], [{"m": [{"role": "user", "content": "b", "score": 0.5}]}])
    )
    texts = [render(chatty, column[0].as_py()) for column in (alone, beside)]
    assert texts == ["a 1", "a 1"]
    one, other = (input_digests(pa.table({"m": c}), ["m"])[0] for c in (alone, beside))
    assert one == other
