"""Verbs that ask a model for something."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from linnet.cli.face import speaking
from linnet.cli.groups import Groups
from linnet.cli.options import (
    CheckpointOption,
    ChoiceOption,
    ChoicesOption,
    DebugOption,
    DeviceOption,
    FileOption,
    JsonOption,
    MaxTokensOption,
    MinPOption,
    PatternOption,
    PenaltyOption,
    PromptsArgument,
    RunArgument,
    SamplesOption,
    SeedOption,
    SettingsOption,
    StopIdOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    WeightsOption,
)
from linnet.errors import BadInput

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def generate(
    run: RunArgument,
    prompts: PromptsArgument = None,
    file: FileOption = None,
    n: SamplesOption = 1,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    penalty: PenaltyOption = 1.0,
    stops: StopOption = None,
    stop_ids: StopIdOption = None,
    choice: ChoiceOption = None,
    choices: ChoicesOption = None,
    pattern: PatternOption = None,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    precision: WeightsOption = None,
    settings: SettingsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Go on from prompts. One sample of one prompt is shown on a terminal as it comes.

    For instance: linnet generate RUN "12+34=" -n 4
    """
    with speaking(json=json, debug=debug) as face:
        asked = all_prompts(prompts or [], file)
        from linnet import workbench

        wanted: workbench.Options = {
            "n": n,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": penalty,
            "stops": [unescaped(text) for text in stops or []],
            "stop_ids": stop_ids or [],
            "choices": all_choices(choice, choices),
            "pattern": pattern,
            "seed": seed,
            "settings": settings or [],
            "precision": precision,
            "names": list(asked),
            "pace": face.remark,
            "remark": face.remark,
        }
        texts = list(asked.values())
        if face.live and len(asked) * n == 1:
            face.follow(workbench.stream(run, texts, checkpoint=checkpoint, device=device, **wanted))
            return
        for record in workbench.generate(run, texts, checkpoint=checkpoint, device=device, **wanted):
            face.show(record)


def unescaped(text: str) -> str:
    r"""Text with \n, \t, \r, \\, \xNN and \uNNNN as the characters that they stand for."""

    def character(found: re.Match[str]) -> str:
        named = found[1]
        if len(named) > 1:
            return chr(int(named[1:], 16))
        if named not in ESCAPES:
            raise BadInput(f"--stop {text!r}: \\{named} stands for nothing; a backslash itself is written \\\\")
        return ESCAPES[named]

    return re.sub(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.|$)", character, text, flags=re.DOTALL)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, which may be compressed."""
    import gzip

    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as wrong:
        raise BadInput(f"{path}: byte {wrong.start} is not UTF-8 text") from wrong
    except (gzip.BadGzipFile, EOFError, zlib.error) as wrong:
        raise BadInput(f"{path}: not a whole gzip file: {wrong}") from wrong
    return [line.rstrip("\r") for line in lines]


def all_prompts(given: list[str], file: Path | None) -> dict[str, str]:
    """Prompts by where they stand."""
    found = {f"prompt {place}": prompt for place, prompt in enumerate(given, 1)}
    found |= prompts_of(file) if file else {}
    if not found:
        empty = f" ({file} has no line with anything in it)" if file else ""
        raise BadInput(f"there is nothing to go on from: give prompts, or a --file of them{empty}")
    return found


def all_choices(given: list[str] | None, file: Path | None) -> list[str] | None:
    """None where anything may be written."""
    if given is None and file is None:
        return None
    return [*(given or []), *(line for line in (lines_of(file) if file else []) if line)]


def prompts_of(path: Path) -> dict[str, str]:
    """The prompts of a file by the line where they stand: the line itself, or the `prompt` of a JSON object."""
    found = {}
    for place, text in enumerate(lines_of(path), 1):
        where = f"{path}, line {place}"
        if text:
            found[where] = _prompt_of(text, where) if text.startswith("{") else text
    return found


def _prompt_of(text: str, where: str) -> str:
    from linnet.untrusted import parse_object

    prompt = parse_object(text, where).get("prompt")
    if not isinstance(prompt, str):
        raise BadInput(f'{where}: a JSON object needs a "prompt" that is text')
    return prompt


def join(groups: Groups) -> None:
    groups.top.command("generate")(generate)
