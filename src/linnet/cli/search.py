"""`linnet search`: a tree after each prompt, methods beside each other, and trees that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from linnet import workbench
from linnet.cli.face import Face, spoken
from linnet.cli.generate import all_prompts
from linnet.cli.groups import Groups
from linnet.cli.options import (
    CheckpointOption,
    DeviceOption,
    FileOption,
    ForceOption,
    MaxTokensOption,
    PromptsArgument,
    SeedOption,
    SettingsOption,
    WeightsOption,
    exclude,
)
from linnet.errors import BadInput

ModelArgument = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="The folder of a run, or of a transformers model.", show_default=False),
]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", help="How to search [maxent].", show_default=False),
]
RewardOption = Annotated[
    str | None,
    typer.Option(
        "--reward", metavar="NAME", help="What is searched for: a name or module:function.", show_default=False
    ),
]
RolloutsOption = Annotated[
    int | None, typer.Option("--rollouts", min=1, help="Most texts that are drawn.", show_default=False)
]
TokensOption = Annotated[
    int | None, typer.Option("--tokens", min=1, help="Most tokens that the model reads.", show_default=False)
]
CallsOption = Annotated[
    int | None, typer.Option("--reward-calls", min=1, help="Most texts that are scored.", show_default=False)
]
SecondsOption = Annotated[float | None, typer.Option("--seconds", help="Most time.", show_default=False)]
WidthOption = Annotated[
    float | None,
    typer.Option("--width", help="End when the interval of the value is as narrow.", show_default=False),
]
SamplesOption = Annotated[
    int | None, typer.Option("--samples", min=0, help="Texts to choose in the end.", show_default=False)
]
PresetOption = Annotated[
    Literal["quick", "balanced", "quality"],
    typer.Option("--preset", help="Rollouts, tokens and samples: 5, 30, 3; 10, 50, 10; or 20, 100, 50."),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", help="Of the law that is searched; it is part of the target.")
]
AdaptiveOption = Annotated[
    bool,
    typer.Option("--adaptive", help="Give more of all rollouts to prompts of uncertain value."),
]
CompareOption = Annotated[
    str | None,
    typer.Option("--compare", metavar="A,B,...", help="Methods at one budget in one table.", show_default=False),
]
ResumeOption = Annotated[
    Path | None, typer.Option("--resume", metavar="TREE", help="Go on with a saved tree.", show_default=False)
]
TreeOption = Annotated[
    Path | None, typer.Option("--out", metavar="TREE", help="A folder to save the tree in.", show_default=False)
]


@spoken
def search(
    face: Face,
    model: ModelArgument = None,
    prompts: PromptsArgument = None,
    file: FileOption = None,
    method: MethodOption = None,
    reward: RewardOption = None,
    rollouts: RolloutsOption = None,
    tokens: TokensOption = None,
    reward_calls: CallsOption = None,
    seconds: SecondsOption = None,
    width: WidthOption = None,
    samples: SamplesOption = None,
    preset: PresetOption = "balanced",
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    adaptive: AdaptiveOption = False,
    compare: CompareOption = None,
    resume: ResumeOption = None,
    out: TreeOption = None,
    force: ForceOption = False,
    seed: SeedOption = None,
    checkpoint: CheckpointOption = None,
    device: DeviceOption = None,
    precision: WeightsOption = None,
    settings: SettingsOption = None,
) -> None:
    """Search for texts of high reward; without a prompt, from nothing but the begin token.

    The target is p(x) exp(lam r(x)); --set takes lam and the other settings of the method, reward.NAME of the
    reward, and wave, memory (MB), processes, reward_seconds, top_k, top_p, min_p, cut, least, most, repeats,
    shown. For instance: linnet search RUN "12+34=" --reward exact --rollouts 256 --set lam=4
    """
    exclude(compare=compare, resume=resume)
    limits = {"rollouts": rollouts, "tokens": tokens, "reward_calls": reward_calls, "seconds": seconds}
    texts_of = {"samples": samples, "preset": preset, "max_tokens": max_tokens, "temperature": temperature}
    how = {"method": method, "reward": reward, "width": width, "adaptive": adaptive, "seed": seed}
    options: dict[str, Any] = {**limits, **texts_of, **how, "settings": settings or [], "remark": face.remark}
    options = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        own = {"file": file, "out": out, "checkpoint": checkpoint, "device": device, "precision": precision}
        for name, value in own.items():
            exclude(resume=resume, **{name: value})
        if prompts:
            raise BadInput("a saved tree has its prompt; give none beside --resume")
        for record in workbench.resume_search(resume, model, **options):
            face.show(record)
        return
    if model is None:
        raise BadInput("a search needs a run: linnet search RUN PROMPT --reward NAME")
    given = prompts_for(model, prompts or [], file)
    texts = list(given.values()) if given else None
    options |= {"names": list(given) or None, "checkpoint": checkpoint, "device": device, "precision": precision}
    if compare is None:
        for record in workbench.search(model, texts, out=out, force=force, **options):
            face.show(record)
        return
    exclude(compare=compare, out=out, method=method)
    methods = [name.strip() for name in compare.split(",") if name.strip()]
    face.show(workbench.compare_searches(model, texts, methods, **options))


def prompts_for(run: Path, prompts: list[str], file: Path | None) -> dict[str, str]:
    """Prompts by name; the file of a run whose domain has files of its own kind is read by it."""
    own = None if file is None else workbench.own_prompts(run, file)
    return all_prompts(prompts, file) if own is None else {**all_prompts(prompts, None), **own}


def join(groups: Groups) -> None:
    groups.top.command("search")(search)
