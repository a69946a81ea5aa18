"""Talking with a run: the model reads what training would have read; answers end where its template says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.codecs import Codec
from linnet.domains.text.chat import TEMPLATES, Template
from linnet.domains.text.conversation import Conversation, encoded, stops_of
from linnet.domains.text.encoding import rows_in_memory
from linnet.domains.text.sources import Passage
from linnet.errors import BadInput
from linnet.records import GenerationRecord
from linnet.tokenization import TokenizerCodec
from linnet.workbench import Options
from linnet.workbench.open import load
from text_corpora import corpus, sentences

WRITTEN = st.text("abc é<|>:\n", max_size=8)


def linnet(*arguments: str | Path, lines: str = "") -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments], input=lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversation")
    lines = sentences(80)
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(lines[::2], lines[1::2], strict=True)
    ]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workbench.train(
        "tiny-text", out=folder / "run", data=[folder / "c.jsonl"], steps=4,
        settings=["template=chatml", "model.context=96", "model.width=16", "model.depth=1"],
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def codec(run: Path) -> Codec:
    return load(run).codec


@settings(max_examples=150, deadline=None)
@given(
    exchanges=st.lists(st.tuples(WRITTEN, WRITTEN), max_size=3),
    system=st.none() | WRITTEN,
    message=WRITTEN,
    last=WRITTEN.filter(bool),
    template=st.sampled_from([*TEMPLATES, "{role}: {content}\n", "[{role}] {content}"]),
)
def test_a_prompt_has_the_ids_that_training_saw_before_the_answer(
    codec: TokenizerCodec,
    exchanges: list[tuple[str, str]],
    system: str | None,
    message: str,
    last: str,
    template: str,
) -> None:
    known = Template.of(template)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in [*exchanges, (message, last)]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    document = known.write({"messages": messages}, "")
    passage = Passage([document.text], answers=[document.answers])
    (trained,) = (rows_in_memory(codec, [passage]).row(0).tolist(),)
    answer = codec.encode(last + known.after).ids.tolist()
    prompt = encoded(codec, known.conversation(system, exchanges, message))
    end = [] if codec.end is None else [codec.end]
    assert [*prompt, *answer, *end] == trained


def conversation(run: Path, **given: Any) -> Conversation:
    options: Options = {"temperature": 0.0, "max_tokens": given.pop("max_tokens", 8)}
    return Conversation.open(run, options, **given)


def test_an_answer_is_what_generate_writes_after_the_same_prompt(run: Path) -> None:
    talk = conversation(run, system="Be brief.")
    *pieces, record = talk.answer("the cat sees the sea 3")
    assert isinstance(record, GenerationRecord) and "".join(piece.text for piece in pieces) == record.text
    (same,) = workbench.generate(
        run, [record.prompt], temperature=0.0, max_tokens=8, stops=["<|im_end|>"]
    )  # whose text is cut where the mark begins
    assert (same.text, same.logprob) == (record.text, pytest.approx(record.logprob, abs=1e-4))
    assert talk.exchanges == [("the cat sees the sea 3", record.text)]
    (second,) = [one for one in talk.answer("again") if one.kind == "generation"]
    assert second.prompt.startswith(record.prompt + record.text) and second.prompt.endswith("assistant\n")


def test_the_oldest_exchanges_make_room(run: Path) -> None:
    talk, remarks = conversation(run), list[str]()
    talk.options["remark"] = remarks.append
    for number in range(8):
        *_, record = talk.answer(f"the baker hears a song {number}")
        assert isinstance(record, GenerationRecord) and f"song {number}<|im_end|>" in record.prompt
    assert len(talk.exchanges) == 8 and "song 0" not in record.prompt
    assert "exchanges no longer fit into the context and are left out" in remarks[-1]
    with pytest.raises(BadInput, match="the message has .* tokens as it is written; beside 8 for the answer"):
        next(iter(talk.answer("a ship " * 100)))
    assert len(talk.exchanges) == 8, "what was refused is no part of the conversation"


def test_answers_end_at_the_mark_or_where_the_next_message_begins(codec: Codec) -> None:
    assert stops_of(Template.of("chatml"), codec) == ([codec.tokens.index("<|im_end|>")], [])
    assert stops_of(Template.of("<|{role}|>{content}<|done|>"), codec) == ([], ["<|done|>"])
    assert stops_of(Template.of("{role}: {content}\n"), codec) == ([], ["\nuser: "])
    assert stops_of(Template.of("plain"), codec) == ([], [])


def test_the_verb_reads_lines_and_writes_answers(run: Path) -> None:
    chat = ("chat", run, "--temperature", "0", "--max-tokens", "6")
    said = linnet(*chat, "--json", lines="a dog likes nobody 4\n\na song\n/new\na dog likes nobody 4\n")
    first, second, again = map(json.loads, said.stdout.splitlines())
    assert said.exit_code == 0 and first["text"] == again["text"] and first["prompt"] == again["prompt"]
    assert second["prompt"].count("<|im_start|>assistant") == 2
    plain = linnet(*chat, lines="a dog likes nobody 4\na song\n")
    assert plain.stdout == f"{first['text']}\n{second['text']}\n"
    long = linnet(*chat, lines="the sea " * 200 + "\na dog likes nobody 4\n")
    assert long.exit_code == 2 and long.stdout == f"{first['text']}\n" and "error: the message has" in long.stderr


def test_a_run_without_a_template_needs_one(tmp_path: Path) -> None:
    workbench.train("tiny-text", out=tmp_path / "run", data=[corpus(tmp_path / "a.txt", 60)], steps=1)
    refused = linnet("chat", tmp_path / "run", lines="hello\n")
    assert refused.exit_code == 2 and "name one with --template (chatml, plain" in refused.stderr
    named = linnet("chat", tmp_path / "run", "--template", "{role}: {content}\n", "--json", lines="hello\n")
    assert json.loads(named.stdout)["prompt"] == "user: hello\nassistant: "
