"""The systems that `linnet bench decode` compares, each built in a process of its own, on the same weights.

A decoder gets prompts of equal length and writes a number of tokens after each, greedily or drawn at temperature
1. Legend: B = rows, V = vocabulary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from bench.processes import Working
from bench.training import Shape
from linnet.decoding.compiling import Compiling
from linnet.decoding.engine import generate
from linnet.decoding.products import Weights, named, packed
from linnet.decoding.requests import Decoding, Request, Sampling
from linnet.decoding.runner import Runner
from linnet.exchange.families import Portable
from linnet.exchange.gguf_model import Kind, write_gguf
from linnet.exchange.hf import write_folder
from linnet.exchange.tokens import ids_codec
from linnet.model.model import Model
from linnet.training.checkpoint import weights_of

Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Scene:
    """What is decoded: prompts of some length, samples of each, tokens of each sample."""

    name: str
    prompts: int
    prompt: int
    samples: int
    tokens: int
    greedy: bool

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def ids(self, vocabulary: int) -> Prompts:
        random = np.random.default_rng(self.prompts)
        return [tuple(row) for row in random.integers(0, vocabulary, (self.prompts, self.prompt)).tolist()]


@dataclass(frozen=True)
class Setting:
    """Everything that a system has to know, and that can be sent to its process."""

    shape: Shape
    scene: Scene
    folder: Path  # of exported files; the first that needs one writes it
    compile: bool
    threads: int
    device: str


@dataclass(frozen=True)
class System:
    """Who decodes, and with which numbers."""

    name: str
    kind: Literal["linnet", "transformers", "llama.cpp", "CTranslate2"]
    numbers: str
    share: bool = True  # of ours: whether the keys of a common prompt are read once
    cache: str | None = None  # of transformers: "static" compiles its steps on CUDA


@dataclass(frozen=True)
class Took:
    """Seconds of one turn: for the first token, with the prompt, and for all of them."""

    first: float
    whole: float


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

    def __init__(
        self, model: Portable, folder: Path, dtype: torch.dtype, device: str, cache: str | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM

        if not (folder / "config.json").exists():
            write_folder(folder, model)
        quiet()
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self.model.generation_config.cache_implementation = cache
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
            rows.append(self._step([(token, first, index) for index, token in enumerate(prompt)], only_last=True))
            for other in range(first + 1, first + samples):
                self.api.llama_memory_seq_cp(memory, first, other, -1, -1)
        return np.repeat(np.concatenate(rows), samples, axis=0)

    def _step(self, tokens: Sequence[tuple[int, int, int]], *, only_last: bool = False) -> np.ndarray:
        """Decode (token, sequence, position) triples; the logits [B, V] of all of them or of the last."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for index, (token, sequence, position) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = not only_last or index + 1 == len(tokens)
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama.cpp could not decode a batch")
        wanted = [len(tokens) - 1] if only_last else range(len(tokens))
        pointers = (self.api.llama_get_logits_ith(self.context, index) for index in wanted)
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


def random_model(shape: Shape) -> Model:
    """Weights thrice as large as fresh ones, so that logits are as far apart as those of a trained model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model(shape.model(feedforward={"kind": "swiglu", "width": (shape.width * 8 // 3 + 31) // 32 * 32}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


def portable_model(model: Model) -> Portable:
    """The model as other programs get it; its tokens are written as their numbers."""
    return Portable(model.config, weights_of(model), ids_codec("bench", model.config.vocabulary, [])[0])


def ours(model: Model, weights: Weights, scene: Scene, *, compile: bool, share: bool = True) -> Ours:
    """The model, packed for this scene."""
    network = packed(model, weights, single=compile and scene.rows == 1)
    device = model.device.type
    compiling = Compiling.of(model.config, weights, device, scene.rows, scene.rows) if compile else None
    return Ours(Runner(network, compiling), share=share)


def decoder(system: System, setting: Setting) -> Decoder:
    model = random_model(setting.shape)
    if system.kind == "linnet":
        weights, device = named(system.numbers), setting.device
        return ours(model.to(device), weights, setting.scene, compile=setting.compile, share=system.share)
    portable, hf = portable_model(model), setting.folder / "hf"
    if system.kind == "transformers":
        return Transformers(portable, hf, getattr(torch, system.numbers), setting.device, system.cache)
    if system.kind == "CTranslate2":
        return CTranslate2(portable, setting.folder, system.numbers, setting.threads)
    kind: Kind = "f16" if system.numbers == "f16" else "q8_0"
    return LlamaCpp(portable, setting.folder, kind, setting.threads, setting.scene.rows)


def build(system: System, setting: Setting) -> Working:
    """This system at work in its process; its first tokens, which compile, are not counted."""
    torch.set_num_threads(setting.threads)
    found, scene = decoder(system, setting), setting.scene
    prompts = scene.ids(setting.shape.vocabulary)

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        found.decode(prompts, scene.samples, tokens, scene.greedy)
        return time.perf_counter() - began

    seconds(scene.tokens)
    return Working(None, lambda: Took(seconds(1), seconds(scene.tokens)), setting.device)
