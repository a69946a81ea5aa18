"""Models that leave in other people's formats, and models that come from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from linnet.domains.text.data import TextData
from linnet.errors import BadInput
from linnet.exchange.copies import write_copy
from linnet.exchange.families import Imported, Portable, family_for
from linnet.exchange.gguf_model import Kind, gguf_family, read_gguf, write_gguf
from linnet.exchange.hf import DTYPES, EXPORTED, Dtype, read_folder, write_folder
from linnet.exchange.settings import refuse
from linnet.files import new_files, new_folder, refuse_existing, write_atomically
from linnet.model.costs import costs
from linnet.model.model import Model
from linnet.records import ExportRecord, ImportRecord
from linnet.training.checkpoint import RUN, Checkpoint, LoopState, RunFolder, weights_of
from linnet.training.run import Run
from linnet.training.settings import to_toml
from linnet.workbench.ends import further_ends, keep_ends
from linnet.workbench.open import Opened, load, read_record
from linnet.workbench.report import write_report
from linnet.workbench.train import unscored

Format = Literal["hf", "gguf", "run"]
RECIPE = "imported"
FEW = 3  # people


def export_run(
    path: Path | str,
    out: Path | str,
    *,
    to: Format | None = None,
    types: Sequence[Kind] = (),
    checkpoint: int | None = None,
    rare: str = "keep",
    fewer_than: int = FEW,
    force: bool = False,
) -> ExportRecord:
    """Write the model of a run, at its best checkpoint unless another is named, in one of three forms.

    Unless `to` names one, that is hf, or gguf where `out` is one .gguf file.
    `types` are numbers of the weights: f32 (unless others are named), f16, bf16, and q8_0 for GGUF. A copy of a
    run on places says what it tells about people; `rare` drops or coarsens places that few users visited.
    """
    to = to or ("gguf" if _is_gguf(Path(out)) else "hf")
    if to not in get_args(Format):
        raise BadInput(f'there is no form "{to}"; there is {", ".join(get_args(Format))}')
    if strange := [kind for kind in types if kind not in get_args(Kind)]:
        raise BadInput(f'there is no type "{strange[0]}"; there is {", ".join(get_args(Kind))}')
    opened = load(path, checkpoint=checkpoint, device="cpu")
    _refuse_privacy(opened, to, rare, fewer_than)
    if to == "run":
        return _to_run(opened, Path(path), Path(out), tuple(types), force, (rare, fewer_than))
    write = _to_hf if to == "hf" else _to_gguf
    return write(opened, Path(path), Path(out), tuple(types), force)


def _refuse_privacy(opened: Opened, to: Format, rare: str, fewer_than: int) -> None:
    """What is asked about rare places has to have some."""
    named = {f"rare={rare}": rare != "keep", f"fewer_than={fewer_than}": fewer_than != FEW}
    asked = " and ".join(name for name, here in named.items() if here)
    if asked and (to != "run" or not opened.run.data.copy_options):
        what = "this run has no places" if to == "run" else f"a copy in the form {to} tells of none"
        raise BadInput(f"{asked} is about rare places in a copy of a run (to run), and {what}")


def _portable(opened: Opened, what: str) -> Portable:
    """The model as other formats see it; networks of places have no form there."""
    if not isinstance(opened.network, Model):
        kind = type(opened.network).__name__
        refuse(
            [f"its network ({kind}) points at past visits, and every Llama gives ids from one vocabulary"], what
        )
    config = opened.model.config
    ends = further_ends(opened.folder, config.vocabulary)
    return Portable(config, weights_of(opened.model), opened.codec, ends)


def _to_hf(opened: Opened, path: Path, out: Path, types: tuple[Kind, ...], force: bool) -> ExportRecord:
    if len(types) > 1 or "q8_0" in types:
        raise BadInput(f"a Hugging Face folder has weights of one type: {', '.join(DTYPES)}")
    model = _portable(opened, "a Hugging Face folder")
    family_for(model.config)
    dtype: Dtype = next((known for known in DTYPES if known in types), "f32")
    with new_folder(out, EXPORTED, force=force) as new:
        family, notes = write_folder(new.path, model, dtype)
    return _record(path, out, "hf", family, opened, sorted(out.iterdir()), notes)


def _to_gguf(opened: Opened, path: Path, out: Path, types: tuple[Kind, ...], force: bool) -> ExportRecord:
    kinds: tuple[Kind, ...] = types or ("f32",)
    single = _is_gguf(out)
    if single and len(kinds) > 1:
        raise BadInput(f"{out} is one file, and {len(kinds)} types were asked for; name a folder")
    model = _portable(opened, "a GGUF file")
    family, name = gguf_family(model.config), path.resolve().name
    if not single and out.exists() and not out.is_dir():
        raise BadInput(f"{out} is not a folder, and its name does not end with .gguf")
    distinct = list(dict.fromkeys(kinds))
    files = [out if single else out / f"{name}-{kind.upper()}.gguf" for kind in distinct]
    notes: dict[str, None] = {}
    with new_files(files, force=force) as hidden:
        for file, kind in zip(hidden, distinct, strict=True):
            notes |= dict.fromkeys(write_gguf(file, model, kind, name).notes)
    return _record(path, out, "gguf", family.name, opened, files, tuple(notes))


def _to_run(
    opened: Opened,
    path: Path,
    out: Path,
    types: tuple[Kind, ...],
    force: bool,
    privacy: tuple[str, int] = ("keep", FEW),
) -> ExportRecord:
    if types:
        raise BadInput("a copy of a run keeps its weights as they are; --type is for hf and gguf")
    if out.exists() and out.resolve() == path.resolve():
        raise BadInput(f"{out} is the run itself; name another folder")
    folder, step = opened.folder, opened.step
    record = read_record(folder) or unscored(folder, opened.run, folder.loop(step)[0])
    record = record.model_copy(update={"path": out.name})
    notes: tuple[str, ...] = ()
    with new_folder(out, RUN, force=force) as new:
        write_copy(new.path, folder, opened.run, weights_of(opened.network), step, record)
        if isinstance(opened.network, Model):
            keep_ends(RunFolder(new.path), further_ends(folder, opened.network.config.vocabulary))
        data = opened.run.data
        chosen = dict(zip(("rare", "fewer_than"), privacy, strict=True)) if data.copy_options else {}
        notes = data.finish_copy(RunFolder(new.path), step, opened.codec, **chosen)
    written = sorted(file for file in out.rglob("*") if file.is_file())
    return _record(path, out, "run", opened.run.recipe, opened, written, notes)


def _record(
    path: Path, out: Path, to: Format, family: str, opened: Opened, files: Sequence[Path], notes: tuple[str, ...]
) -> ExportRecord:
    return ExportRecord(
        run=str(path),
        path=str(out),
        to=to,
        family=family,
        checkpoint=opened.step,
        parameters=sum(weight.numel() for weight in weights_of(opened.network).values()),
        files={str(file.relative_to(out)) if file != out else out.name: file.stat().st_size for file in files},
        notes=notes,
    )


def import_run(source: Path | str, out: Path | str | None = None, *, force: bool = False) -> ImportRecord:
    """A Hugging Face folder or a GGUF file as a run that generates, scores text and opens like our own."""
    source = Path(source)
    out = Path("runs") / source.resolve().stem if out is None else Path(out)
    refuse_existing(out, force=force, layout=RUN)
    if (
        source.is_dir()
        and not (source / "config.json").exists()
        and (files := sorted(filter(_is_gguf, source.iterdir())))
    ):
        raise BadInput(f"{source} has no config.json but GGUF files; import one of them, such as {files[0]}")
    brought = read_gguf(source) if _is_gguf(source) else read_folder(source)
    model, name = brought.model, source.resolve().name
    run = Run(recipe=RECIPE, precision="float32", data=TextData(), model=model.config)
    with new_folder(out, RUN, force=force) as new:
        _write_run(RunFolder(new.path), run, brought, name, out)
    return ImportRecord(
        path=str(out),
        source=str(source),
        family=brought.family,
        parameters=costs(model.config).parameters,
        vocabulary=model.config.vocabulary,
        context=model.config.context,
        begin=None if model.codec.begin is None else model.codec.tokens[model.codec.begin],
        end=None if model.codec.end is None else model.codec.tokens[model.codec.end],
        further_ends=model.further_ends,
        notes=brought.notes,
    )


def _is_gguf(path: Path) -> bool:
    """Whether a path names one GGUF file, in letters of either case."""
    return path.suffix.lower() == ".gguf"


def _write_run(folder: RunFolder, run: Run, brought: Imported, name: str, out: Path) -> None:
    """The files of a finished run without training: one checkpoint, of step 0."""
    model = brought.model
    write_atomically(folder.settings, to_toml(run).encode())
    write_atomically(folder.codec, json.dumps(model.codec.to_json(), ensure_ascii=False).encode())
    loop = LoopState(step=0, best_step=0)
    keep_ends(folder, model.further_ends)
    folder.save(Checkpoint(model.weights, None, {}, loop))
    record = unscored(folder, run, loop).model_copy(update={"path": str(out)})
    write_report(
        folder, run, record, (f"imported from {name}, a model of the family {brought.family}", *brought.notes)
    )
    write_atomically(folder.record, record.model_dump_json(indent=1).encode())
