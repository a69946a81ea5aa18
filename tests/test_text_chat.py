"""Conversations and prompts with completions: one document each, of which the answers are learned and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from linnet.cli.app import build
from linnet.domains.text.chat import ROLES, TEMPLATES, Template
from linnet.domains.text.data import TextData
from linnet.domains.text.tokenizer_training import Tokenizing
from linnet.errors import BadInput
from linnet.tokenization import TokenizerCodec
from text_corpora import sentences

SMALL = Tokenizing(vocabulary=300)
CONTENT = st.text(max_size=12)
MESSAGES = st.lists(st.tuples(st.sampled_from(ROLES), CONTENT), min_size=1, max_size=5).map(
    lambda pairs: [{"role": role, "content": content} for role, content in pairs]
)


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def conversations(n: int, seed: int = 0) -> list[dict[str, Any]]:
    lines = sentences(4 * n, seed)
    return [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": lines[4 * i]},
                {"role": "assistant", "content": f"é {lines[4 * i + 1]}"},
                {"role": "user", "content": lines[4 * i + 2]},
                {"role": "assistant", "content": lines[4 * i + 3]},
            ]
        }
        for i in range(n)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@settings(max_examples=100, deadline=None)
@given(messages=MESSAGES, template=st.sampled_from([*TEMPLATES, "[{role}] {content}", "{content}\n\n"]))
def test_answers_are_what_the_assistant_says_and_what_closes_it(
    messages: list[dict[str, str]], template: str
) -> None:
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    known = Template.of(template)
    if not answers:
        with pytest.raises(BadInput, match="row 1: no message of the assistant, so there is no answer to learn"):
            known.write({"messages": messages}, "row 1")
        return
    document = known.write({"messages": messages}, "row 1")
    assert [document.text[a:b] for a, b in document.answers] == [answer + known.after for answer in answers]
    assert document.text == "".join(
        known.opening(message["role"]) + message["content"] + known.after for message in messages
    )


def test_a_prompt_and_its_completion_are_two_messages() -> None:
    row = {"prompt": "2+2=", "completion": "4"}
    assert Template.of("plain").write(row, "") == ("2+2=4", ((4, 5),))
    pair = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}]
    assert Template.of("chatml").write(row, "") == Template.of("chatml").write({"messages": pair}, "")
    markers = ("<|im_start|>", "<|im_end|>")
    assert Template.of("chatml").markers == markers and Template.of("plain").markers == ()
    assert Template.of("<|{role}|>{content}").markers == ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")


@pytest.mark.parametrize("template", ["", "{role}", "{content}{content}", "{content}{role}", "chat"])
def test_other_templates_are_refused(template: str) -> None:
    with pytest.raises(BadInput, match=r"data.template is chatml, plain, or a text with {content} once"):
        TextData(template=template).load(1)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "a"}, 'a template needs "messages", or "prompt" and "completion"; there is text'),
        ({"prompt": "a"}, "there is prompt"),
        ({"messages": []}, 'field "messages" holds a list, not a list of messages'),
        ({"messages": {"role": "user"}}, 'field "messages" holds an object, not a list of messages'),
        ({"messages": ["hello"]}, "message 1: expected"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "with a role of system, user, assistant, tool"),
        ({"messages": [{"role": "assistant", "content": None}]}, "message 1 holds null, not text"),
        ({"prompt": "a", "completion": 4}, 'field "completion" holds an integer, not text'),
        ({"prompt": "a", "completion": "b\0"}, "row 1 holds NUL or half a surrogate pair"),
    ],
)
def test_rows_that_are_no_conversation_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "c.jsonl", [row])
    with pytest.raises(BadInput) as caught:
        TextData(paths=(path,), template="chatml").load(1)
    assert f"{path}, row 1" in str(caught.value) and message in str(caught.value)


def test_conversations_without_a_template_say_that_one_is_needed(tmp_path: Path) -> None:
    import polars

    path = written(tmp_path / "c.jsonl", conversations(3))
    polars.DataFrame(conversations(3)).write_parquet(tmp_path / "c.parquet")
    for name in (path, tmp_path / "c.parquet"):
        with pytest.raises(BadInput, match="these rows are conversations: --set template=chatml"):
            TextData(paths=(name,)).load(1)


@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_only_answers_are_scored_and_counted(tmp_path: Path, template: str) -> None:
    rows = conversations(40)
    data = TextData(paths=(written(tmp_path / "c.jsonl", rows),), template=template, tokenizer=SMALL)
    part = data.read(data.load(1).codec, data.paths)
    codec, known = data.load(1).codec, Template.of(template)
    assert isinstance(codec, TokenizerCodec) and not part.note
    for i, row in enumerate(rows):
        ids = part.rows.row(i)
        scored = part.rows.scored[part.rows.starts[i] : part.rows.starts[i + 1]]
        answers = [m["content"] + known.after for m in row["messages"] if m["role"] == "assistant"]
        assert codec.decode(ids) == known.write(row, "").text
        assert codec.decode(ids[scored]) == "".join(answers)
        assert scored[-1] and ids[-1] == codec.end, "that the conversation ends is learned too"
        assert part.rows.row_characters[i] == sum(map(len, answers))
        assert part.rows.row_bytes[i] == sum(len(answer.encode()) for answer in answers)
    assert all(marker in codec.tokens for marker in known.markers)


def test_a_prompt_has_the_tokens_that_training_saw(tmp_path: Path) -> None:
    """Generation begins with what stands before an answer, encoded by itself."""
    data = TextData(
        paths=(written(tmp_path / "c.jsonl", conversations(20)),), template="{role}: {content}\n", tokenizer=SMALL
    )
    material = data.load(1)
    part = data.read(material.codec, data.paths)
    for i, row in enumerate(conversations(20)):
        known = Template.of(data.template or "")
        before = known.write({"messages": row["messages"][:3]}, "").text
        prompt = before + known.opening("user") + row["messages"][3]["content"] + known.after
        prompt += known.opening("assistant")
        ids, scored = part.rows.row(i), part.rows.scored[part.rows.starts[i] : part.rows.starts[i + 1]]
        last = int(np.flatnonzero(~scored)[-1]) + 1  # where the last answer begins
        assert material.codec.decode(ids[:last]) == prompt


def test_every_form_gives_the_same_conversations(tmp_path: Path) -> None:
    import polars

    rows = conversations(30)
    data = TextData(paths=(written(tmp_path / "c.jsonl", rows),), template="chatml", tokenizer=SMALL)
    polars.DataFrame(rows).write_parquet(tmp_path / "c.parquet")
    codec = data.load(1).codec
    prints = {data.read(codec, [path]).rows.fingerprint() for path in (*data.paths, tmp_path / "c.parquet")}
    assert len(prints) == 1


def test_split_columns_and_samples_work_on_conversations(tmp_path: Path) -> None:
    rows = [row | {"split": "validation" if i % 5 == 0 else "train"} for i, row in enumerate(conversations(40))]
    data = TextData(paths=(written(tmp_path / "c.jsonl", rows),), template="plain", tokenizer=SMALL)
    assert [len(part.rows) for part in (data.load(1).train, data.load(1).validation)] == [32, 8]
    few = data.model_copy(update={"sample": 10}).load(1)
    assert len(few.train.rows) == 10


def test_a_store_keeps_which_tokens_are_answers(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", conversations(40))
    data = TextData(paths=(path,), template="chatml", tokenizer=SMALL)
    kept = data.model_copy(update={"store": tmp_path / "store"})
    memory = data.load(1)
    for stored in (kept.load(1), kept.load(1)):
        for part in ("train", "validation"):
            mine, other = getattr(memory, part).rows, getattr(stored, part).rows
            for name in ("ids", "scored", "starts", "row_characters", "row_bytes"):
                np.testing.assert_array_equal(getattr(mine, name)[:], getattr(other, name)[:])
    with pytest.raises(BadInput, match="is stale: template was chatml and is plain"):
        kept.model_copy(update={"template": "plain"}).load(1)


def test_a_run_learns_answers(tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", conversations(60))
    few = ["--set", "training.steps=6", "--set", "threads=1", "--json"]
    result = linnet(
        "train", "tiny-text", "--data", path, "--set", "template=chatml", "--out", tmp_path / "r", *few
    )
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    held = TextData(paths=(path,), template="chatml", tokenizer=Tokenizing(vocabulary=512)).load(1).validation.rows
    found = {score["name"]: score for score in json.loads(line)["scores"]}
    assert found["nats_per_char"]["n"] == held.characters and found["nats_per_token"]["n"] == held.targets
    other = written(tmp_path / "pairs.jsonl", [{"prompt": "the cat ", "completion": "sees the sea"}] * 12)
    result = linnet("eval", tmp_path / "r", "--data", other, "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    scores = {score["name"]: score for score in json.loads(line)["scores"]}
    assert scores["nats_per_char"]["n"] == 12 * len("sees the sea<|im_end|>\n")
