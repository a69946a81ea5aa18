"""A search over any causal language model of transformers (extra `hf`), by its own cache of keys and values.

Rows are aligned at their last tokens: where a row has read fewer than others, columns of its cache and of its
input are padding, which the mask leaves out. Positions are given with each token, so padding does not count.
Legend: R = rows, P = prompt tokens, T = tokens after the prompt, S = columns of the cache, H = heads, D = head
width, M = numbers of a token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput, library
from linnet.search.cached_steps import Batch, CachedStep, Ids, Reader, Texts
from linnet.search.steps import Target

Layers = list[tuple[Tensor, Tensor]]  # keys and values [R, H, S, D]
UNBOUNDED = 1 << 40  # the context of a model that names none


class HFReader(Reader):
    """A model of transformers in eval mode, with the keys and values of a prompt."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model.eval(), model.device
        self.accepted = frozenset(inspect.signature(model.forward).parameters)
        if "position_ids" not in self.accepted:
            raise BadInput(f"{type(model).__name__} takes no position_ids, which a search over a tree needs")
        config = model.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", None) or UNBOUNDED
        with torch.inference_mode():
            self.vocabulary = self.begin([0]).shape[-1]
        self.sizes = [(keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in self.layers]

    def begin(self, ids: Sequence[int]) -> Tensor:
        columns = np.arange(len(ids))[None]
        logits, self.layers = self.read(np.array([ids]), columns, np.ones_like(columns), [])
        return logits

    @property
    def token_memory(self) -> tuple[int, torch.dtype]:
        numbers = sum(heads * (one + other) for heads, one, other in self.sizes)
        return numbers, self.layers[0][0].dtype

    def open(self, memory: Tensor, lengths: np.ndarray) -> Batch:
        rows, tokens, _ = memory.shape
        moved = align(memory, lengths)
        layers, first = [], 0
        for (heads, width, value_width), (keys, values) in zip(self.sizes, self.layers, strict=True):
            parts = []
            for begun, size in ((keys, width), (values, value_width)):
                own = moved[:, :, first : first + heads * size].view(rows, tokens, heads, size).transpose(1, 2)
                parts.append(torch.cat((begun.expand(rows, -1, -1, -1), own), 2))
                first += heads * size
            layers.append((parts[0], parts[1]))
        prompt = self.layers[0][0].shape[2]
        columns = np.arange(prompt + tokens)
        real = (columns < prompt) | (columns >= prompt + tokens - lengths[:, None])
        return HFBatch(self, layers, real, prompt)

    def read(
        self, ids: np.ndarray, positions: np.ndarray, real: np.ndarray, layers: Layers
    ) -> tuple[Tensor, Layers]:
        """Logits [R, V] after the last of ids [R, T], and the keys and values with theirs; `real` [R, S + T]."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, (keys, values) in enumerate(layers):
            cache.update(keys, values, number)
        given = {"input_ids": ids, "position_ids": positions, "attention_mask": real}
        tensors = {name: torch.from_numpy(value).to(self.device) for name, value in given.items()}
        # Older versions name the cache otherwise; some models can leave out the logits of all but the last.
        options: dict[str, Any] = {"cache" if "cache" in self.accepted else "past_key_values": cache}
        options |= {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
        logits: Tensor = self.model(**tensors, **options, use_cache=True).logits[:, -1]
        return logits, self._layers(cache)

    @staticmethod
    def _layers(cache: Any) -> Layers:
        """The keys and values of a cache that remembers nothing else."""
        from transformers.cache_utils import DynamicLayer

        layers = getattr(cache, "layers", ())
        if not layers or any(type(layer) is not DynamicLayer for layer in layers):
            raise BadInput(
                f"this model remembers more than keys and values ({type(cache).__name__}); "
                "a search needs a model with plain attention"
            )
        return [(layer.keys, layer.values) for layer in layers]


def align(memory: Tensor, lengths: np.ndarray) -> Tensor:
    """Memory [R, T, M] of which each row has its first `lengths` [R] tokens, moved to its end."""
    tokens = memory.shape[1]
    if (lengths == tokens).all():
        return memory
    where = np.maximum(np.arange(tokens) - (tokens - lengths[:, None]), 0)
    index = torch.from_numpy(where).to(memory.device)
    return memory.gather(1, index[..., None].expand(-1, -1, memory.shape[2]))


class HFBatch(Batch):
    """Rows of one cache; `real` [R, S] marks the columns that are tokens of the row."""

    def __init__(self, reader: HFReader, layers: Layers, real: np.ndarray, prompt: int) -> None:
        self.reader, self.layers, self.real, self.prompt = reader, layers, real, prompt

    def read(self, ids: Ids, before: Ids) -> Tensor:
        lengths = np.array([len(row) for row in ids])
        most = int(lengths.max())
        padded = np.zeros((len(ids), most), np.int64)
        new = np.arange(most) >= most - lengths[:, None]
        padded[new] = np.concatenate(ids)
        known = self.real.sum(1)
        positions = np.where(new, known[:, None] + np.cumsum(new, 1) - 1, 0)
        self.real = np.concatenate((self.real, new), 1)
        logits, self.layers = self.reader.read(padded, positions, self.real.astype(np.int64), self.layers)
        return logits

    def keep(self, rows: np.ndarray) -> None:
        self.fork(rows)

    def fork(self, rows: np.ndarray) -> None:
        index = self._tensor(rows)
        self.layers = [(keys[index], values[index]) for keys, values in self.layers]
        self.real = self.real[rows]

    def memory(self, rows: np.ndarray, depths: np.ndarray) -> Tensor:
        real = self.real.cumsum(1)[rows]
        columns = (real < (self.prompt + depths)[:, None]).sum(1)  # the first column with so many tokens
        row, column = self._tensor(rows), self._tensor(columns)
        parts = [part[row, :, column].flatten(1) for layer in self.layers for part in layer]
        return torch.cat(parts, 1)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.reader.device)


def hf_step(
    model: Any, tokenizer: Any, target: Target, *, end: int | str | None = None, **options: Any
) -> CachedStep:
    """A step over a model and its tokenizer; `end` is a token or an id, the model's own unless it is given."""
    reader = HFReader(model)

    def prompt(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text

    texts = Texts(prompt, lambda root, ids: decoded(tokenizer, root, ids))
    return CachedStep(reader, target, ends=ends_of(model, tokenizer, end), texts=texts, **options)


def decoded(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What ids write after those of a prompt, which may be more than they write by themselves, such as a space."""
    parts = (prompt, [*prompt, *ids], ids)
    before, whole, alone = (tokenizer.decode(part, skip_special_tokens=True) for part in parts)
    text: str = (
        whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, skip_special_tokens=True)
    )
    return text


def ends_of(model: Any, tokenizer: Any, end: int | str | None) -> tuple[int, ...]:
    """The ids that end a text."""
    if isinstance(end, str):
        found = tokenizer.convert_tokens_to_ids(end)
        if found is None or (found == tokenizer.unk_token_id and end != tokenizer.unk_token):
            raise BadInput(f"the end {end!r} is no token of this model; give its id, or one of its tokens")
        return (int(found),)
    if end is not None:
        return (end,)
    chosen = model.generation_config.eos_token_id
    if chosen is None:
        chosen = model.config.get_text_config().eos_token_id
    return () if chosen is None else (chosen,) if isinstance(chosen, int) else tuple(chosen)


def load_hf(folder: Path, device: str = "cpu") -> tuple[Any, Any]:
    """The model of a folder, in float32, and its tokenizer; nothing is fetched."""
    hf = library("transformers", f"{folder} is a model of transformers, which is not installed", "hf")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model: Any = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise BadInput(f"{folder} cannot be loaded by transformers: {first}") from None
    return model.to(device), tokenizer
