"""Other programs that decode the same weights, each behind one small face.

A peer gets prompts of equal length and writes a number of tokens after each: greedily, or drawn at temperature 1.
Legend: B = rows, V = vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from linnet.decoding.engine import generate
from linnet.decoding.requests import Decoding, Request, Sampling
from linnet.decoding.runner import Runner
from linnet.exchange.expressing import Portable
from linnet.exchange.gguf_writing import Kind, write_gguf
from linnet.exchange.hf import write_folder

Prompts = Sequence[tuple[int, ...]]


class Decoder(Protocol):
    def decode(self, prompts: Prompts, samples: int, tokens: int, greedy: bool) -> list[list[int]]:
        """`samples` continuations of each prompt, of exactly this many tokens."""


class Ours:
    """The engine, in the precision of this runner's products; never stopped by an end token."""

    def __init__(self, runner: Runner, *, share: bool = True) -> None:
        self.runner, self.share = runner, share

    def decode(self, prompts: Prompts, samples: int, tokens: int, greedy: bool) -> list[list[int]]:
        requests = [Request(prompt, sample) for prompt in prompts for sample in range(samples)]
        decoding = Decoding(Sampling(temperature=0 if greedy else 1), tokens)
        found = generate(self.runner, requests, decoding, rows=len(requests), share=self.share)
        return [list(sample.ids) for sample in found]


class Transformers:
    """`generate` of transformers on the exported folder."""

    def __init__(self, model: Portable, folder: Path, dtype: torch.dtype, attention: str, device: str) -> None:
        from transformers import AutoModelForCausalLM

        if not (folder / "config.json").exists():
            write_folder(folder, model)
        quiet()
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=dtype, attn_implementation=attention).to(device).eval()
        self.device = device

    def decode(self, prompts: Prompts, samples: int, tokens: int, greedy: bool) -> list[list[int]]:
        ids = torch.tensor(prompts, device=self.device)
        options: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
        with torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                num_return_sequences=samples,
                pad_token_id=0,
                **options,
            )
        whole: list[list[int]] = found[:, ids.shape[1] :].tolist()
        return whole


class LlamaCpp:
    """llama.cpp through its low-level batches: one sequence a row, each with its own cache."""

    def __init__(self, model: Portable, folder: Path, kind: Kind, threads: int, rows: int) -> None:
        import llama_cpp

        self.api, self.rows = llama_cpp, rows
        file = folder / f"{kind}.gguf"
        write_gguf(file, model, kind, "bench")
        self.context_tokens = model.config.context
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {file}")
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = self.context_tokens * rows, 2048, 512
        wanted.n_seq_max, wanted.kv_unified = rows, False
        wanted.n_threads = wanted.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, wanted)
        self.vocabulary = model.config.vocabulary
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)
        self.random = np.random.default_rng(0)

    def decode(self, prompts: Prompts, samples: int, tokens: int, greedy: bool) -> list[list[int]]:
        api = self.api
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        rows = len(prompts) * samples
        last = self._read(prompts, samples)
        written: list[list[int]] = [[] for _ in range(rows)]
        length = len(prompts[0])
        for step in range(tokens):
            chosen = self._choose(last, greedy)
            for row, token in enumerate(chosen):
                written[row].append(token)
            if step + 1 < tokens:
                last = self._step([(token, row, length + step) for row, token in enumerate(chosen)])
        return written

    def _read(self, prompts: Prompts, samples: int) -> np.ndarray:
        """Each prompt once; its other samples copy the cache of the first."""
        memory = self.api.llama_get_memory(self.context)
        rows = []
        for number, prompt in enumerate(prompts):
            first = number * samples
            rows.append(self._step([(token, first, place) for place, token in enumerate(prompt)], only_last=True))
            for other in range(first + 1, first + samples):
                self.api.llama_memory_seq_cp(memory, first, other, -1, -1)
        return np.repeat(np.concatenate(rows), samples, axis=0)

    def _step(self, tokens: Sequence[tuple[int, int, int]], *, only_last: bool = False) -> np.ndarray:
        """Decode (token, sequence, position) triples; the logits [B, V] of all of them or of the last."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for place, (token, sequence, position) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = not only_last or place + 1 == len(tokens)
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not decode a batch")
        wanted = [len(tokens) - 1] if only_last else range(len(tokens))
        pointers = (self.api.llama_get_logits_ith(self.context, place) for place in wanted)
        return np.stack([np.ctypeslib.as_array(pointer, (self.vocabulary,)) for pointer in pointers])

    def _choose(self, logits: np.ndarray, greedy: bool) -> list[int]:
        if greedy:
            best: list[int] = logits.argmax(-1).tolist()
            return best
        noise = self.random.gumbel(size=logits.shape).astype(np.float32)
        drawn: list[int] = (logits + noise).argmax(-1).tolist()
        return drawn


class CTranslate2:
    """CTranslate2 on the exported folder, which its own converter reads; int8 weights are made when it loads."""

    def __init__(self, model: Portable, folder: Path, kind: str, threads: int) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        source, converted = folder / "hf", folder / "ctranslate2"
        if not converted.exists():
            if not (source / "config.json").exists():
                write_folder(source, model)
            quiet()
            TransformersConverter(str(source)).convert(str(converted))
            _name_special_tokens(converted / "config.json")
        self.names: list[str] = json.loads((converted / "vocabulary.json").read_text(encoding="utf-8"))
        self.generator = ctranslate2.Generator(str(converted), compute_type=kind, intra_threads=threads)

    def decode(self, prompts: Prompts, samples: int, tokens: int, greedy: bool) -> list[list[int]]:
        found = self.generator.generate_batch(
            [[self.names[token] for token in prompt] for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            num_hypotheses=samples,
            sampling_topk=1 if greedy else 0,
            include_prompt_in_result=False,
            end_token=[],
        )
        return [list(ids) for one in found for ids in one.sequences_ids]


def _name_special_tokens(file: Path) -> None:
    """CTranslate2 does not load a model without special tokens; none of them is ever drawn or waited for here."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {"bos_token": "0", "eos_token": "0", "unk_token": "0"}
    file.write_text(json.dumps(settings), encoding="utf-8")


def quiet() -> None:
    """No bars of transformers between the lines of a benchmark."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def has(library: str) -> bool:
    return importlib.util.find_spec(library) is not None
