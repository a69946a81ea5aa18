"""Frozen records: what every use of the toolkit produces, and what `--json`, reports and viewers read.

One record is one JSON line with a `kind`. Fields may be added to a record, never renamed or removed.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Record(BaseModel):
    """The parent of all records: frozen, and closed against misspelt fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="null")

    def line(self) -> str:
        return self.model_dump_json()


def read_back(value: Any) -> Any:
    return math.nan if value is None else value


# JSON has no NaN: a number that is not known is written as null, and null is read as one.
Number = Annotated[float, BeforeValidator(read_back)]


class Baseline(Record):
    """The best score on the same rows that a person without a model would get."""

    name: str
    value: Number


class Score(Record):
    """A number, how many rows it stands on, its 95 % interval, and what it has to beat."""

    name: str
    value: Number
    n: int
    low: Number
    high: Number
    baseline: Baseline
    note: str = ""


class Lead(Record):
    """By how much a run is ahead of another system, sample by sample on the same ones."""

    measure: str
    value: Number
    low: Number
    high: Number
    p: float | None  # of no difference, two-sided; None where a single user leaves nothing to draw from


class System(Record):
    """One row of a table of systems on the same samples: what is trained, and every rule that it has to beat."""

    name: str
    values: dict[str, Number]
    lead: Lead | None = None  # of the run over this system


class RecipeRecord(Record):
    """One recipe in a line."""

    kind: Literal["recipe"] = "recipe"
    name: str
    domain: str
    summary: str
    reads: str
    takes: str


class SettingRecord(Record):
    """One setting of a recipe."""

    kind: Literal["setting"] = "setting"
    key: str
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()


class RunRecord(Record):
    """What `train` and `resume` end with."""

    kind: Literal["run"] = "run"
    path: str
    recipe: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    device: str
    scores: tuple[Score, ...]
    systems: tuple[System, ...] = ()
    notes: tuple[str, ...] = ()  # what has to be known to read the scores


class DryRunRecord(Record):
    """What a run would be: sizes, and time and memory from a few steps that were tried."""

    kind: Literal["dry run"] = "dry run"
    recipe: str
    device: str
    precision: str
    threads: int
    compiled: bool  # which makes steps faster than they were measured
    parameters: int
    rows: int  # of the training part
    tokens: int
    validation_rows: int
    batch: int
    steps: int
    rounds: float  # of the training part
    validations: int
    seconds_per_step: float
    seconds: float
    training_bytes: int  # by estimate
    memory_bytes: int  # the most of this process, or of the GPU, so far
    checkpoint_bytes: int
    notes: tuple[str, ...] = ()


class OverSeeds(Record):
    """One score of several runs that differ in their seed alone."""

    name: str
    mean: float
    least: float
    most: float
    baseline: Baseline


class SeedsRecord(Record):
    """What training over several seeds ends with."""

    kind: Literal["seeds"] = "seeds"
    recipe: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    scores: tuple[OverSeeds, ...]


class ScoresRecord(Record):
    kind: Literal["scores"] = "scores"
    run: str
    data: str
    scores: tuple[Score, ...]
    systems: tuple[System, ...] = ()
    notes: tuple[str, ...] = ()  # what a person should know about the files and the scores


class ChoiceRecord(Record):
    """One of the choices of a sample: what the model says of it as a whole, and how often it is drawn."""

    text: str
    logprob: float
    probability: float


class GenerationRecord(Record):
    """One sample; `text` and `ids` are the generated part. `prompt` is as the codec of the run completes it."""

    kind: Literal["generation"] = "generation"
    prompt: str
    text: str
    ids: tuple[int, ...]
    logprob: float
    stop: Literal["end", "length", "stop"]
    near_ties: int | None = None  # tokens whose two likeliest were nearly equal; None: not counted
    tokens: tuple[str, ...] | None = None  # the names of `ids`, with their log-probabilities: only on request
    token_logprobs: tuple[float, ...] | None = None
    choices: tuple[ChoiceRecord, ...] | None = None  # of the first sample of a prompt, the likeliest choice first


class PieceRecord(Record):
    """Text of a sample as it comes; the pieces of a sample are its text. `sample` counts those of its prompt."""

    kind: Literal["piece"] = "piece"
    prompt: str
    sample: int
    text: str


class Candidate(Record):
    value: Any
    probability: float


class PredictionRecord(Record):
    kind: Literal["prediction"] = "prediction"
    id: str | int | None
    candidates: tuple[Candidate, ...]
    text: str = ""  # the reasons, of models that give some


class Fact(Record):
    """One statement of a caption: its kind, what it says, and whether it holds; None: too close to call."""

    name: str
    text: str
    true: bool | None


class CaptionRecord(Record):
    """What a model says of a series, and whether each fact of it holds; `values` are the series, for pictures."""

    kind: Literal["caption"] = "caption"
    id: str
    text: str
    facts: tuple[Fact, ...]
    values: tuple[float, ...] = ()


class ForecastRecord(Record):
    """What comes next in one series: the median is the point forecast in `mean` unless samples were averaged.

    `quantiles` maps a level to its values, `paths` holds sampled futures where they were asked for, and `history`
    the last values before the forecast, for pictures.
    """

    kind: Literal["forecast"] = "forecast"
    id: str | int | None
    mean: tuple[float, ...]
    quantiles: dict[str, tuple[float, ...]]
    paths: tuple[tuple[float, ...], ...] = ()
    history: tuple[float | None, ...] = ()
    truth: tuple[float | None, ...] = ()  # what came, where it is known


class MissRecord(Record):
    """A next place that a model did not expect: where the user went, and where the model was sure of."""

    kind: Literal["miss"] = "miss"
    user: Any
    left: str  # the local time of the departure
    here: Any
    went: Any
    probability: float
    rank: float | None  # None: the model could not name the place
    expected: Any
    expected_probability: float
    first_visit: bool


class Grid(Record):
    """Numbers along named axes; `labels` names the entries of an axis, which are counted where it has none."""

    name: str
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]] = {}
    values: list[Any]


class AnalysisRecord(Record):
    """What an analysis of a network found: numbers along named axes, and facts beside them.

    `tokens` are what the model read; they name the entries of axes of positions. `further` holds other grids.
    """

    kind: str
    title: str = ""
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]] = {}
    tokens: tuple[str, ...] = ()
    values: list[Any]
    unit: str = ""
    facts: dict[str, float | int | str] = {}
    further: tuple[Grid, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def grids(self) -> tuple[Grid, ...]:
        """All grids, with the tokens at the axes of positions."""
        positions = {axis: self.tokens for axis in ("position", "query", "key") if self.tokens}
        own = Grid(name=self.unit or self.kind, axes=self.axes, labels=self.labels, values=self.values)
        known = [
            {axis: positions[axis] for axis in grid.axes if axis in positions} for grid in (own, *self.further)
        ]
        return tuple(
            grid.model_copy(update={"labels": names | grid.labels})
            for grid, names in zip((own, *self.further), known, strict=True)
        )


class AttentionRecord(AnalysisRecord):
    """Attention of one sequence: `values[layer][head][query][key]`."""

    kind: Literal["attention"] = "attention"
    axes: tuple[str, ...] = ("layer", "head", "query", "key")


class BenchRecord(Record):
    """Ours and the peers, measured in turn in one run after a check that they compute the same."""

    kind: Literal["bench"] = "bench"
    name: str
    ours: float
    peers: dict[str, float | None]
    ratios: dict[str, float | None]
    unit: str
    n: int
    machine: str
    note: str = ""
    compared: str = "ours / peer"  # what the ratios are


class StepRecord(Record):
    """One optimiser step, as `metrics.jsonl` keeps it."""

    kind: Literal["step"] = "step"
    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    ms: float
    data_wait: float
    memory_mb: float
    gpu_memory_mb: float | None = None
    gpu_use: float | None = None


class ValidationRecord(Record):
    """One validation; `ema_loss` where the run keeps averaged weights."""

    kind: Literal["validation"] = "validation"
    step: int
    loss: float
    ema_loss: float | None
    tokens: int
    attention_entropy: tuple[float, ...] = ()


class NoteRecord(Record):
    """Something the run wants its reader to know: a kernel that was chosen, samples that were cut."""

    kind: Literal["note"] = "note"
    step: int
    text: str


class ShowRecord(Record):
    """What a run folder holds and what its model costs."""

    kind: Literal["show"] = "show"
    path: str
    recipe: str
    state: Literal["empty", "unfinished", "finished"]
    step: int
    steps: int
    parameters: int
    flops_per_token: int
    kv_bytes_per_token: int
    training_bytes: int
    checkpoints: tuple[int, ...]
    best: int | None
    settings: dict[str, Any]
    scores: tuple[Score, ...]
    curve: AnalysisRecord | None = None  # losses over the steps


class ListedRunRecord(Record):
    """One row of `linnet runs`: its rank in its recipe, score and data, and what differs in its recipe."""

    kind: Literal["listed"] = "listed"
    rank: int | None  # None: no score yet
    path: str
    recipe: str
    state: str
    step: int
    score: str
    value: float | None
    settings: dict[str, Any]


class DataRecord(Record):
    """What `data make` wrote or `data check` found; `refused` data cannot be trained on as they are."""

    kind: Literal["data"] = "data"
    path: str
    rows: dict[str, int]
    counts: dict[str, dict[str, int]]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    refused: bool = False


class TokenizerRecord(Record):
    """A tokenizer and what it does to some text: `tokenizer train` and `tokenizer check`."""

    kind: Literal["tokenizer"] = "tokenizer"
    path: str
    action: Literal["trained", "checked"]
    vocabulary: int
    documents: int
    characters: int
    utf8_bytes: int
    tokens: int
    characters_per_token: float
    unknown: int
    unused: int
    unused_examples: tuple[str, ...]
    lossless: bool
    lossy_documents: int
    first_loss: str
    seconds: float
    megabytes_per_second: float
    notes: tuple[str, ...]


class ExportRecord(Record):
    """What `export` wrote: each file with its bytes. `family` is what the other side loads it as."""

    kind: Literal["export"] = "export"
    run: str
    path: str
    to: Literal["hf", "gguf", "run"]
    family: str
    checkpoint: int
    parameters: int
    files: dict[str, int]
    notes: tuple[str, ...]


class ImportRecord(Record):
    """What `import` made of somebody else's model; `begin` and `end` are names of tokens, where it has them."""

    kind: Literal["import"] = "import"
    path: str
    source: str
    family: str
    parameters: int
    vocabulary: int
    context: int
    begin: str | None
    end: str | None
    notes: tuple[str, ...]
    further_ends: tuple[int, ...] = ()  # ids that end a sample, too


class DoctorRecord(Record):
    """The machine, what it is good at, and what is slow here and why."""

    kind: Literal["doctor"] = "doctor"
    python: str
    torch: str
    device: str
    cpu: str
    threads: int
    instruction_sets: tuple[str, ...]
    memory_gb: float
    matmul_gflops: dict[str, float]
    remarks: tuple[str, ...]
