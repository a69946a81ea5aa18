"""Models that leave in other people's formats, and models that come from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.exchange.families import Imported, Portable, family_for
from linnet.exchange.gguf_model import Kind, gguf_family, read_gguf, write_gguf
from linnet.exchange.hf import DTYPES, EXPORTED, Dtype, read_folder, write_folder
from linnet.exchange.settings import refuse
from linnet.files import new_files, new_folder, refuse_existing, write_atomically
from linnet.records import ExportRecord, ImportRecord
from linnet.training.checkpoint import RUN, Checkpoint, LoopState, RunFolder, weights_of
from linnet.training.run import Run
from linnet.training.settings import to_toml
from linnet.workbench.copies import write_copy
from linnet.workbench.open import Opened, further_ends, keep_ends, load, options_of, read_record
from linnet.workbench.report import write_report
from linnet.workbench.train import unscored

Format = Literal["hf", "gguf", "run"]
RECIPE = "imported"


def export_run(
    path: Path | str,
    out: Path | str,
    *,
    to: Format | None = None,
    types: Sequence[Kind] = (),
    checkpoint: int | None = None,
    settings: Sequence[str] = (),
    force: bool = False,
) -> ExportRecord:
    """Write the model of a run, at its best checkpoint unless another is named, in one of three forms.

    Unless `to` names one, that is hf, or gguf where `out` is one .gguf file. `types` are numbers of the weights:
    f32 (unless others are named), f16, bf16, and q8_0 for GGUF. A copy of a run on places says what it tells about
    people; its `settings` drop or coarsen places that few users visited (`rare=drop`, `fewer_than=3`).
    """
    path, out = Path(path), Path(out)
    to = to or ("gguf" if _is_gguf(out) else "hf")
    if to not in get_args(Format):
        raise BadInput(f'there is no form "{to}"; there is {", ".join(get_args(Format))}')
    if strange := [kind for kind in types if kind not in get_args(Kind)]:
        raise BadInput(f'there is no type "{strange[0]}"; there is {", ".join(get_args(Kind))}')
    if settings and to != "run":
        raise BadInput(f"--set {settings[0]}: only a copy of a run (--to run) has settings")
    opened = load(path, checkpoint=checkpoint, device="cpu")
    if to == "run":
        return _to_run(opened, path, out, types, settings, force)
    write = _to_hf if to == "hf" else _to_gguf
    return write(opened, path, out, types, force)


def _portable(opened: Opened, what: str) -> Portable:
    """The model as other formats see it, if they know networks of this kind."""
    if reason := opened.run.model.only_here:
        refuse([reason], what)
    config = opened.model.config
    ends = further_ends(opened.folder, config.vocabulary)
    return Portable(config, weights_of(opened.model), opened.codec, ends)


def _to_hf(opened: Opened, path: Path, out: Path, types: Sequence[Kind], force: bool) -> ExportRecord:
    if len(types) > 1 or "q8_0" in types:
        raise BadInput(f"a Hugging Face folder has weights of one type: {', '.join(DTYPES)}")
    model = _portable(opened, "a Hugging Face folder")
    family_for(model.config)
    dtype: Dtype = next((known for known in DTYPES if known in types), "f32")
    with new_folder(out, EXPORTED, force=force) as new:
        family, notes = write_folder(new.path, model, dtype)
    return _record(path, out, "hf", family, opened, sorted(out.iterdir()), notes)


def _to_gguf(opened: Opened, path: Path, out: Path, types: Sequence[Kind], force: bool) -> ExportRecord:
    kinds: list[Kind] = list(dict.fromkeys(types)) or ["f32"]
    single = _is_gguf(out)
    if single and len(kinds) > 1:
        raise BadInput(f"{out} is one file, and {len(kinds)} types were asked for; name a folder")
    model = _portable(opened, "a GGUF file")
    family, name = gguf_family(model.config), path.resolve().name
    if not single and out.exists() and not out.is_dir():
        raise BadInput(f"{out} is not a folder, and its name does not end with .gguf")
    files = [out if single else out / f"{name}-{kind.upper()}.gguf" for kind in kinds]
    notes: dict[str, None] = {}
    with new_files(files, force=force) as hidden:
        for file, kind in zip(hidden, kinds, strict=True):
            notes |= dict.fromkeys(write_gguf(file, model, kind, name).notes)
    return _record(path, out, "gguf", family.name, opened, files, tuple(notes))


def _to_run(
    opened: Opened, path: Path, out: Path, types: Sequence[Kind], settings: Sequence[str], force: bool
) -> ExportRecord:
    if types:
        raise BadInput("a copy of a run keeps its weights as they are; --type is for hf and gguf")
    if out.exists() and out.resolve() == path.resolve():
        raise BadInput(f"{out} is the run itself; name another folder")
    folder, step, data = opened.folder, opened.step, opened.run.data
    options = options_of(settings, **data.copy_options)
    record = read_record(folder) or unscored(folder, opened.run, folder.loop(step)[0])
    record = record.model_copy(update={"path": out.name})
    with new_folder(out, RUN, force=force) as new:
        write_copy(new.path, folder, opened.run, weights_of(opened.network), step, record)
        notes = data.finish_copy(RunFolder(new.path), step, opened.codec, **options)
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
    files = sorted(filter(_is_gguf, source.iterdir())) if source.is_dir() else []
    if files and not (source / "config.json").exists():
        raise BadInput(f"{source} has no config.json but GGUF files; import one of them, such as {files[0]}")
    imported = read_gguf(source) if _is_gguf(source) else read_folder(source)
    model, codec = imported.model, imported.model.codec
    run = Run(
        recipe=RECIPE, precision="float32", data=registry().settings("text")(domain="text"), model=model.config
    )
    with new_folder(out, RUN, force=force) as new:
        _write_run(RunFolder(new.path), run, imported, source.resolve().name, out)
    return ImportRecord(
        path=str(out),
        source=str(source),
        family=imported.family,
        parameters=sum(weight.numel() for weight in model.weights.values()),
        vocabulary=model.config.vocabulary,
        context=model.config.context,
        begin=None if codec.begin is None else codec.tokens[codec.begin],
        end=None if codec.end is None else codec.tokens[codec.end],
        further_ends=model.further_ends,
        notes=imported.notes,
    )


def _is_gguf(path: Path) -> bool:
    """Whether a path names one GGUF file, in letters of either case."""
    return path.suffix.lower() == ".gguf"


def _write_run(folder: RunFolder, run: Run, imported: Imported, name: str, out: Path) -> None:
    """The files of a finished run without training: one checkpoint, of step 0."""
    model = imported.model
    write_atomically(folder.settings, to_toml(run).encode())
    write_atomically(folder.codec, json.dumps(model.codec.to_json(), ensure_ascii=False).encode())
    loop = LoopState(step=0, best_step=0)
    keep_ends(folder, model.further_ends)
    folder.save(Checkpoint(model.weights, None, {}, loop))
    record = unscored(folder, run, loop).model_copy(update={"path": str(out)})
    source = f"imported from {name}, a model of the family {imported.family}"
    write_report(folder, run, record, (source, *imported.notes))
    write_atomically(folder.record, record.model_dump_json(indent=1).encode())
