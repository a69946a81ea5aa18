"""Text: corpora, tokenizers, token stores and the n-gram models that a network has to beat.

What is read is in `sources` and `corpus`, tokens in `tokenization`, `tokenizer_training` and `store`, the block
metric of the headline protocol in `blocks`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator

from linnet.codecs import Codec
from linnet.domains.contract import Domain, Material, Part, Region, Scored
from linnet.domains.text.blocks import block_scores, no_block
from linnet.domains.text.corpus import Corpus, Parts, with_split
from linnet.domains.text.encoding import rows_in_memory
from linnet.domains.text.finding import find, hub_version
from linnet.domains.text.sources import Reading, Stream, Tally, read_passages, shown
from linnet.domains.text.store import FORMAT, Origin, alone, find_store, open_store, write_store
from linnet.domains.text.tokenizer_training import (
    Tokenizing,
    contradictions,
    tokenizer_file,
    train_tokenizer,
    with_markers,
)
from linnet.domains.tokens import TokenDomain, rows_of
from linnet.errors import BadInput
from linnet.ngrams import counted_baselines, seen_before
from linnet.records import Baseline
from linnet.rows import Rows
from linnet.tokenization import TokenizerCodec
from linnet.untrusted import mistake_text

TOKENS_PER_PARAMETER = 20  # where a given amount of computing gains most (Hoffmann et al., 2022)
MOST_ROUNDS = 8.0  # of one text; more were not tried (dev/LOG.md)
READING = tuple(Reading.model_fields)  # what `eval` may read in another way than training did
if TYPE_CHECKING:
    from linnet.evaluation import Units
    from linnet.model.model import Model
    from linnet.training.run import Run

VERIFIED = 2 << 30  # bytes of tokens up to which a store is read through before it is used
AUTOMATIC = Path("auto")
LARGE = 1 << 29  # stored bytes above which the encoded corpus is kept on disk
LOSSY = "lossy tokenizer"


class TextData(TokenDomain):
    """The `[data]` part of a text run. Runs of several seeds share their split.

    The words of a `split` column (train, validation, test) are obeyed. A large corpus is never kept in memory.
    """

    _trained: TextData | None = PrivateAttr(None)  # of the run, where `eval` reads other text in another way

    domain: Literal["text"] = Field("text", description="kind of sequences")
    paths: tuple[Path, ...] = Field((), description="files and folders")
    documents: Literal["line", "paragraph", "file"] = Field(
        "line", description="what a document of a text file is"
    )
    field: str = Field("text", description="column of the text in JSON lines, CSV and Parquet")
    errors: Literal["strict", "replace"] = Field("strict", description="for bytes that are not UTF-8")
    sample: int | None = Field(None, ge=1, description="so many documents, drawn by split_seed")
    validation: float = Field(0.1, gt=0, lt=1, description="share that is held out")
    validation_paths: tuple[Path, ...] = Field((), description="files to hold out instead")
    split: Literal["shuffled", "tail"] = Field("shuffled", description="held out: at random, or the last ones")
    split_seed: int = Field(1337, ge=0, description="of the split and the sample")
    tokenizer: Tokenizing = Tokenizing()
    store: Path | None = Field(None, description="folder of the encoded corpus; auto: in ~/.cache/linnet")
    template: str | None = Field(None, description="of conversations: chatml, plain or {role} and {content}")
    block: tuple[int, int] | None = Field(None, description="batch and context of the headline protocol")

    @field_validator("paths", "validation_paths", "store")
    @classmethod
    def _whole_paths(cls, value: Any) -> Any:
        """A run is resumed from any folder."""
        if isinstance(value, tuple):
            return tuple(path if str(path).startswith("hf:") else path.absolute() for path in value)
        return value if value in (None, AUTOMATIC) else value.absolute()

    def load(self, seed: int, codec: Codec | None = None) -> Material:
        """The same parts for every seed. A resumed run brings the codec that it began with."""
        if (folder := self._folder_for(codec)) is None:
            tokenizer, parts, notes = self._read(codec)
            train, validation = (rows_in_memory(tokenizer, read(Tally())) for read in parts.values())
            return self._material(tokenizer, train, validation, notes)
        with alone(folder):
            begun = find_store(folder, self._origin())
            if begun is not None and begun.manifest.complete:
                return self._stored(folder)
            if begun is not None and self.tokenizer.file is None:
                codec = codec or begun.codec
            tokenizer, parts, notes = self._read(codec)
            origin = self._origin()._replace(tokenizer=tokenizer.fingerprint())
            store = write_store(folder, tokenizer, origin, parts, remarks=notes)
            if begun is not None and store.token_bytes <= VERIFIED:
                store.verify()  # what somebody else began
        return self._material(tokenizer, store.rows("train"), store.rows("validation"), notes)

    def _read(self, codec: Codec | None) -> tuple[TokenizerCodec, Mapping[str, Stream], tuple[str, ...]]:
        """The tokenizer, the documents of each part, and what a person should know about them."""
        parts = self._corpus.divide()
        tokenizer, notes = (codec, ()) if isinstance(codec, TokenizerCodec) else self._codec(parts)
        lost = filter(None, [lossiness(tokenizer, parts.validation)])
        return tokenizer, {"train": parts.train, "validation": parts.validation}, (*parts.notes, *notes, *lost)

    def read(self, codec: Codec, paths: Sequence[Path], split: str | None = None) -> Part:
        assert isinstance(codec, TokenizerCodec)

        def stream(tally: Tally) -> Any:
            passages = read_passages(find(paths).sources, self._reading, tally)
            return passages if split is None else with_split(passages, split)

        tally = Tally()
        rows = rows_in_memory(codec, stream(tally))
        note = f"no begin token: the first token of each of {len(rows):,} documents is not scored; its text counts"
        note = "; ".join(filter(None, (lossiness(codec, stream), note if codec.begin is None else "")))
        notes, baselines = [*find(paths).notes, *tally.remarks()], None
        try:
            train = self._learned_from(codec)
        except BadInput as error:
            notes.append(f"no baseline that counts the training text: {error}")
        else:
            notes += filter(None, [seen_before(train, rows) or ("" if split else self._same_file(paths))])
            baselines = functools.partial(counted_baselines, train, rows, len(codec.tokens))
        return Part(rows, note=note, baselines=baselines, notes=tuple(notes), unit="document")

    @classmethod
    def codec_from(cls, stored: Mapping[str, Any]) -> Codec:
        return TokenizerCodec.from_json(stored)

    @property
    def files(self) -> tuple[Path, ...]:
        store = None if self.store == AUTOMATIC else self.store
        return (*self.paths, *self.validation_paths, *filter(None, (self._tokenizer_file, store)))

    def rounds(self, parameters: int, steps: int) -> float:
        """Short texts are read again, while a model of this size learns from them."""
        return min(MOST_ROUNDS, max(1.0, TOKENS_PER_PARAMETER * parameters / steps))

    def unused(self, run: Run) -> Mapping[str, str]:
        reason = f"the tokenizer is that of {run.start}, whose weights the run begins with"
        return {} if run.start is None else {"data.tokenizer": reason}

    def remarks(self, run: Run, material: Material) -> tuple[str, ...]:
        rows, steps = material.train.rows, run.training.steps or 0
        often = f"{steps / self.plan(rows, run).steps_per_epoch:.3g}"
        times = "once" if often == "1" else f"{often} times"
        return (
            *super().remarks(run, material),
            *no_block(rows_of(material.validation), material.codec, self.block, "validation part"),
            f"{steps:,} steps read the {rows.steps:,} tokens of the training part {times}",
        )

    def further_scores(
        self, model: Model, codec: Codec, rows: Rows, units: Units, beaten: Baseline, *, batch: int, region: Region
    ) -> Scored:
        """The block metric of the headline protocol."""
        if self.block is None:
            return Scored(())
        found = block_scores(model, codec, rows, units, self.block, beaten, size=batch, region=region)
        return Scored(tuple(found), notes=tuple(no_block(rows, codec, self.block, "text")))

    @property
    def evaluation_options(self) -> Mapping[str, Any]:
        return {key: getattr(self, key) for key in READING}

    def for_evaluation(self, options: Mapping[str, Any]) -> tuple[Domain, Mapping[str, Any]]:
        """The data of a run, read as it read its own unless `eval` says otherwise."""
        try:
            changed = TextData.model_validate({**self.model_dump(), **options})
        except ValidationError as error:
            raise BadInput(f"--set: {mistake_text(error.errors()[0])}") from None
        changed._trained = self
        return changed, {}

    @property
    def _reading(self) -> Reading:
        return Reading(**{key: getattr(self, key) for key in READING})

    @property
    def _corpus(self) -> Corpus:
        drawing = (self.sample, self.validation, self.split, self.validation_paths, self.split_seed)
        return Corpus(self.paths, self._reading, *drawing)

    def _codec(self, parts: Parts) -> tuple[TokenizerCodec, tuple[str, ...]]:
        """The tokenizer: an existing file, or one learned from the training part alone (and kept, if named)."""
        file = self._tokenizer_file
        if file is not None and file.is_file():
            codec = TokenizerCodec.read(file)
            note = f"tokenizer {file} with {len(codec.tokens):,} tokens, as it is"
            other = contradictions(codec, self.tokenizer)
            return codec, (f"{note}; not obeyed: {', '.join(other)}" if other else note,)
        tally = Tally()
        wanted = with_markers(self.tokenizer, self.template)
        documents = shown(parts.train(tally), "tokenizer", self._corpus.sources(), tally)
        codec, notes = train_tokenizer(documents, wanted, parts.characters)
        if file is None:
            return codec, notes
        codec.write(file)
        return codec, (*notes, f"a tokenizer with {len(codec.tokens):,} tokens was made and kept in {file}")

    @property
    def _tokenizer_file(self) -> Path | None:
        return None if self.tokenizer.file is None else tokenizer_file(self.tokenizer.file)

    def _stored(self, folder: Path) -> Material:
        """The material of a complete store; of the corpus only sizes and times are looked at then."""
        store = open_store(folder)
        notes = [*store.manifest.remarks, f"encoded documents are read from {folder}"]
        if store.token_bytes <= VERIFIED:
            store.verify()
        else:
            notes.append(
                f"{store.token_bytes / 1e9:.1f} GB of tokens in {folder} were not read through for damage"
            )
        hubs = {source.name for source in self._origin().sources if source.form == "hf"}
        if unknown := sorted(name for name in hubs if not hub_version(name)):
            notes.append(f"whether {', '.join(unknown)} has changed since it was encoded cannot be found out here")
        return self._material(store.codec, store.rows("train"), store.rows("validation"), tuple(notes))

    def _material(self, codec: TokenizerCodec, train: Rows, validation: Rows, notes: tuple[str, ...]) -> Material:
        lost = next((note for note in notes if note.startswith(LOSSY)), "")
        again = seen_before(train, validation)
        baselines = functools.partial(counted_baselines, train, validation, len(codec.tokens))
        held = Part(validation, note=lost, baselines=baselines, unit="document")
        return Material(codec, Part(train), held, (*notes, *([f"validation part: {again}"] if again else [])))

    def _origin(self) -> Origin:
        """What decides the content of a store: sources, settings, and the tokenizer file where one exists."""
        others = find(self.validation_paths).sources if self.validation_paths else ()
        left_out = {"paths", "validation_paths", "store", "block", "domain"}
        chosen = self.model_dump(mode="json", exclude={name: True for name in left_out} | {"tokenizer": {"file"}})
        file = self._tokenizer_file
        tokenizer = TokenizerCodec.read(file).fingerprint() if file is not None and file.is_file() else None
        return Origin((*self._corpus.sources(), *others), chosen, tokenizer)

    @property
    def _folder(self) -> Path | None:
        """Where the encoded corpus is kept; None keeps it in memory. A folder of the cache is never stale."""
        if self.store not in (None, AUTOMATIC):
            return self.store
        origin = self._origin()
        if self.store is None and sum(source.size for source in origin.sources) <= LARGE:
            return None
        marks = [(source.name, source.size, source.modified) for source in origin.sources]
        made_from = json.dumps([FORMAT, marks, origin.settings], sort_keys=True)
        cache = Path(os.environ.get("LINNET_CACHE") or Path.home() / ".cache" / "linnet")
        return cache / "stores" / hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def _folder_for(self, codec: Codec | None) -> Path | None:
        """The same for a run that brings its tokenizer: in the cache, stores of other tokenizers are others."""
        folder = self._folder
        if folder is None or not isinstance(codec, TokenizerCodec) or self.store not in (None, AUTOMATIC):
            return folder
        found = find_store(folder) if folder.is_dir() else None
        own = found is not None and found.manifest.tokenizer == codec.fingerprint()
        return folder if own else folder.with_name(f"{folder.name}-{codec.fingerprint()[:16]}")

    def _learned_from(self, codec: TokenizerCodec) -> Rows:
        """The rows of the training part, refused where they are gone or no longer those of this tokenizer."""
        if not self.paths:
            raise BadInput("the run does not name it")
        material = (self._trained or self).load(0, codec)
        assert isinstance(material.codec, TokenizerCodec)
        if material.codec.fingerprint() != codec.fingerprint():
            raise BadInput("it is encoded with another tokenizer than the one of the run")
        return rows_of(material.train)

    def _same_file(self, paths: Sequence[Path]) -> str:
        """Files that were trained on, where documents do not tell (one that was cut for validation)."""
        own = {source.name for source in self._corpus.sources()}
        shared = [source.name for source in find(paths).sources if source.name in own]
        return f"{', '.join(shared[:3])}: at least a part was seen in training" if shared else ""


def lossiness(codec: TokenizerCodec, stream: Stream) -> str:
    """Whether documents come back from their tokens, and what the first loss is; nothing if all do."""
    total, lost, first = 0, 0, ""
    for part in (part for passage in stream(Tally()) for part in passage.portions()):
        for text, back in zip(part.texts, codec.texts_of(codec.ids_of(part.texts)), strict=True):
            total += 1
            if back != text:
                first = first or f"{text[:40]!r} becomes {back[:40]!r}"
                lost += 1
    return f"{LOSSY}: {lost:,} of {total:,} documents do not come back ({first})" if lost else ""
