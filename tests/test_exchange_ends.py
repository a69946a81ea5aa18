"""Where texts of imported models end: at every id that their files name, and nothing is dropped without a word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foreign_models import folder_of, llama_config, portable, trained
from linnet import workbench
from linnet.cli.app import build
from linnet.codecs import CharacterCodec
from linnet.errors import BadInput
from linnet.exchange.families import Portable
from linnet.exchange.gguf_model import read_gguf, write_gguf
from linnet.exchange.hf import read_folder, write_folder
from linnet.tokenization import TokenizerCodec

MODEL = llama_config(vocabulary=330)


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def changed(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def theirs(path: Path, ends: object, **config: Any) -> Path:
    """A folder whose tokenizer calls <end> the end, and whose generation_config.json names other ids."""
    folder_of(path, MODEL, trained())
    changed(path, "config.json", **config)
    changed(path, "generation_config.json", eos_token_id=ends)
    return path


def test_every_end_of_an_imported_model_ends_a_sample(tmp_path: Path) -> None:
    folder_of(tmp_path / "free", MODEL, TokenizerCodec(trained().content, trained().begin_name, None))
    workbench.import_run(tmp_path / "free", tmp_path / "free-run")
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    (free,) = workbench.generate(tmp_path / "free-run", ["The fox"], **asked)
    *_, second, first = dict.fromkeys(free.ids)
    result = linnet("import", theirs(tmp_path / "theirs", [first, second]), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert f"({first}) or " in said and "and not at the <end> of tokenizer_config.json" in said
    codec = workbench.load(tmp_path / "run").codec
    assert codec.end == first
    (found,) = workbench.generate(tmp_path / "run", ["The fox"], **asked)
    assert (found.ids, found.stop) == (free.ids[: free.ids.index(second)], "end")
    # They stay with the model wherever it goes.
    workbench.export_run(tmp_path / "run", tmp_path / "copy", to="run")
    assert list(workbench.generate(tmp_path / "copy", ["The fox"], **asked)) == [found]
    workbench.export_run(tmp_path / "run", tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == [first, second]
    back = read_folder(tmp_path / "hf").model
    assert (back.codec.end, back.further_ends) == (first, (second,))
    workbench.export_run(tmp_path / "run", tmp_path / "m.GGUF", to="gguf")
    workbench.import_run(tmp_path / "m.GGUF", tmp_path / "back")
    (again,) = workbench.generate(tmp_path / "back", ["The fox"], **asked)
    assert (again.ids, again.stop) == (found.ids, "end")


def test_the_tokenizers_own_end_is_taken_where_it_is_among_several(tmp_path: Path) -> None:
    end = trained().end
    found = read_folder(theirs(tmp_path / "theirs", [7, end, 9]))
    assert (found.model.codec.end_name, found.model.further_ends) == ("<end>", (7, 9))
    assert "as generation_config.json says" in found.notes[0]
    # Without a word in generation_config.json, config.json is asked, and then the tokenizer.
    only = read_folder(theirs(tmp_path / "config", None, eos_token_id=5)).model
    assert (only.codec.end, only.further_ends) == (5, ())
    own = read_folder(theirs(tmp_path / "own", None, eos_token_id=None))
    assert (own.model.codec.end_name, own.notes) == ("<end>", ())


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "eos beyond": (
        {"eos_token_id": 50256},
        r"config.json: eos_token_id names 50256, and the ids of this model are 0",
    ),
    "one of several": ({"eos_token_id": [0, 330]}, r"config.json: eos_token_id names 330, and .* 0..329"),
    "bos beyond": ({"bos_token_id": 99999}, r"config.json: bos_token_id names 99999, and .* 0..329"),
    "a name": ({"eos_token_id": "</s>"}, r"config.json: eos_token_id is '</s>', neither a token id nor a list"),
    "negative": ({"eos_token_id": -7}, r"config.json: eos_token_id names -7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_ids_that_the_model_does_not_have_are_refused_with_file_and_field(name: str, tmp_path: Path) -> None:
    config, message = WRONG[name]
    theirs(tmp_path / "theirs", 0, **config)
    result = linnet("import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match=message):
        read_folder(tmp_path / "theirs")


def test_what_transformers_writes_where_nobody_chose_is_noted(tmp_path: Path) -> None:
    hf = pytest.importorskip("transformers")
    small = hf.GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    # Newer versions name nothing where nobody chose; older ones wrote the ids of the first GPT-2.
    small.bos_token_id = small.eos_token_id = 50256
    hf.GPT2LMHeadModel(small).save_pretrained(tmp_path / "theirs")
    record = workbench.import_run(tmp_path / "theirs", tmp_path / "run")
    notes = [note for note in record.notes if "where nobody chose" in note]
    assert [key in note for key, note in zip(("bos_token_id", "eos_token_id"), notes, strict=True)] == [True, True]


def test_a_model_of_ids_says_with_which_to_begin(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    changed(folder, "config.json", bos_token_id=3, eos_token_id=[4, 5])
    record = workbench.import_run(folder, tmp_path / "run")
    assert record.notes[1:] == (
        "texts of this model begin with the id 3: type it first",
        "samples end at the ids 4 or 5",
    )
    assert (record.end, record.further_ends) == ("4", (5,))
    chosen = workbench.generate(tmp_path / "run", ["3 17"], choices=["6 8", "7"], n=20, temperature=9.0)
    assert {found.text.strip() for found in chosen} == {"6 8", "7"}
    with pytest.raises(BadInput, match="61 is no id of this model; ids are 0..60, separated by spaces"):
        workbench.generate(tmp_path / "run", ["3 17"], choices=["5 61"])


def test_gguf_files_name_their_ends_too(tmp_path: Path) -> None:
    model = Portable(MODEL, portable(MODEL).weights, trained(), (7, 8, 9))
    written = write_gguf(tmp_path / "m.gguf", model, "f32", "m")
    assert "samples of this model end at the ids 9, too, which a GGUF file has no key for" in written.notes
    found = read_gguf(tmp_path / "m.gguf")
    assert (found.model.codec.end_name, found.model.further_ends) == ("<end>", (7, 8))
    assert "as m.gguf says" in found.notes[0]
    content = (tmp_path / "m.gguf").read_bytes()
    at = content.index(b"tokenizer.ggml.eos_token_id") + len(b"tokenizer.ggml.eos_token_id") + 4
    (tmp_path / "m.gguf").write_bytes(content[:at] + (5000).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(BadInput, match=r"m.gguf: tokenizer.ggml.eos_token_id names 5000, and .* 0..329"):
        read_gguf(tmp_path / "m.gguf")


def test_characters_that_vanish_are_noted(tmp_path: Path) -> None:
    ours = CharacterCodec("ab -")
    config = llama_config(vocabulary=len(ours.tokens))
    write_gguf(tmp_path / "m.gguf", Portable(config, portable(config).weights, ours), "f32", "m")
    record = workbench.import_run(tmp_path / "m.gguf", tmp_path / "run")
    assert any("characters that need them are left out of a text" in note for note in record.notes)
    result = linnet("generate", tmp_path / "run", "aß日b", "--max-tokens", "2", "--json")
    assert result.exit_code == 0, result.stderr
    assert "prompt 1: the tokenizer has no token for 'ß', '日'; the model does not see that" in result.stderr
    # Every byte has a token in the usual vocabulary, so nothing is said of it.
    write_gguf(tmp_path / "b.gguf", Portable(MODEL, portable(MODEL).weights, trained()), "f32", "m")
    assert read_gguf(tmp_path / "b.gguf").notes == ()


def test_tensors_too_few_and_too_many_are_told_apart(tmp_path: Path) -> None:
    write_folder(tmp_path / "theirs", portable(llama_config()))
    changed(tmp_path / "theirs", "config.json", num_hidden_layers=1)
    with pytest.raises(BadInput, match=r"config.json says nothing of tensors that are there: model.layers.1"):
        read_folder(tmp_path / "theirs")
    changed(tmp_path / "theirs", "config.json", num_hidden_layers=3)
    with pytest.raises(BadInput, match=r"config.json promises what the tensors do not hold: model.layers.2"):
        read_folder(tmp_path / "theirs")


def test_reasons_that_only_follow_from_another_are_not_given(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "vocab_size": 9, "n_layer": 1, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"config.json: n_embd is missing$"):
        read_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(
        BadInput, match=r'"bloom" is unknown here; linnet reads gemma, gpt2, gpt_neox, llama, mistral, '
    ):
        read_folder(tmp_path)


def test_a_folder_of_gguf_files_says_what_to_import(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", portable(llama_config()), "f32", "m")
    with pytest.raises(BadInput, match=r"no config.json but GGUF files; import one of them, such as .*m.gguf"):
        workbench.import_run(tmp_path, tmp_path / "run")
