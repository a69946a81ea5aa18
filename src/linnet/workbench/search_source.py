"""Models that can be searched: runs of ours, and folders of transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linnet.decoding.products import packed
from linnet.decoding.runner import Runner
from linnet.errors import BadInput
from linnet.machine import keep_freed_buffers
from linnet.search.cached_steps import CachedStep, Reader, Texts
from linnet.search.model_steps import ModelReader
from linnet.search.steps import Target
from linnet.training.checkpoint import RunFolder
from linnet.workbench.open import Opened, chosen_device, further_ends, opened_run, read_run, weights_in
from linnet.workbench.prompts import Prompt, no_prompt, read_prompt, text_after

CONFIG, SETTINGS = "config.json", "run.toml"


@dataclass(frozen=True)
class Source:
    """A model, how its prompts are read, and how its ids are written."""

    path: str
    reader: Callable[[str], Reader]  # for a prompt, whose written form is given
    ends: tuple[int, ...]
    context: int
    read: Callable[[str | None, str], Prompt]  # a text, or nothing but the begin token, and its name
    answer: Callable[[Sequence[int], Sequence[int]], str]  # the text of ids after those of a prompt

    def step(self, prompt: str, target: Target, memory: int) -> CachedStep:
        """A step for one prompt, whose written form is given."""
        texts = Texts(lambda ids: prompt, self.answer)
        return CachedStep(self.reader(prompt), target, ends=self.ends, texts=texts, memory=memory)


def source_of(
    run: Path | str | Opened,
    *,
    checkpoint: int | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> Source:
    """The best checkpoint of a run (or a named one), an opened run as it is, or a folder of transformers."""
    keep_freed_buffers()
    if not isinstance(run, Opened) and (Path(run) / CONFIG).is_file() and not (Path(run) / SETTINGS).exists():
        if checkpoint is not None or precision not in (None, "auto", "float32"):
            raise BadInput(f"{run} is a model of transformers: it has no checkpoints, and is used in float32")
        return source_of_transformers(Path(run), chosen_device(device))
    return source_of_run(opened_run(run, checkpoint=checkpoint, device=device), precision)


def own_prompts(run: Path | str, file: Path) -> Mapping[str, str] | None:
    """The prompts of a file that only the domain of a run can read; None where a file has a prompt a line."""
    if not (Path(run) / SETTINGS).is_file():
        return None
    return read_run(RunFolder.open(Path(run))).data.prompts(file)


def source_of_run(opened: Opened, precision: str | None) -> Source:
    codec, config = opened.codec, opened.model.config
    model = packed(opened.model, weights_in(precision))

    def read(text: str | None, name: str) -> Prompt:
        return no_prompt(codec) if text is None else read_prompt(opened, text, name)

    ends = tuple(end for end in (codec.end, *further_ends(opened.folder, config.vocabulary)) if end is not None)

    def reader(prompt: str) -> ModelReader:
        return ModelReader(Runner(model, columns=opened.run.data.columns_after(codec, prompt)))

    return Source(
        str(opened.folder.path), reader, ends, config.context, read, functools.partial(text_after, codec)
    )


def source_of_transformers(folder: Path, device: str) -> Source:
    from linnet.search.hf_steps import HFReader, decoded, ends_of, load_hf

    model, tokenizer = load_hf(folder, device)
    reader = HFReader(model)

    def read(text: str | None, name: str) -> Prompt:
        if text is None:
            if tokenizer.bos_token_id is None:
                raise BadInput("this model has no begin token, so it needs something to go on from: give a prompt")
            return Prompt("no prompt", "", (tokenizer.bos_token_id,))
        ids = tuple(tokenizer(text)["input_ids"])
        if not ids:
            raise BadInput(f"{name} is empty: there is nothing to go on from")
        return Prompt(name, text, ids)

    return Source(
        str(folder),
        lambda prompt: HFReader(model),
        ends_of(model, tokenizer, None),
        reader.context,
        read,
        lambda prompt, ids: decoded(tokenizer, prompt, ids),
    )
