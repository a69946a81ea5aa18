"""Small valid files and runs of every format, made by linnet itself: what `bench.fuzz` mutates."""

from __future__ import annotations

import gzip
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "12", "lazy", "dogs", "naïve", "cafés", "😀", "again"]
SMALL = ["model.width=16", "model.depth=1", "model.attention.heads=2"]
UNFINISHED = [*SMALL, "data.instances=40", "eval_every=2", "ema=0.9", "optim.kind=muon", "batch=8"]
SENSOR = "id=subject+recording,group=subject"
PACKED = (
    "few.txt",
    "few.jsonl",
    "chats.jsonl",
    "sums.jsonl",
    "s.jsonl",
    "v.csv",
    "a.gpx",
    "weekly.csv",
    "values.jsonl",
)


class Stopping:
    """Ends a run after its fourth step, so that it has two checkpoints and no record."""

    def __call__(self, course: Any) -> Stopping:
        return self

    def write(self, record: Any) -> None:
        if record.kind == "step" and record.step == 5:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def make_valid_files(at: Path) -> None:
    """Everything that a format may need; takes half a minute."""
    write_texts(at)
    write_places(at)
    write_series(at)
    write_questions(at)
    train_runs(at)
    train_runs_of_series(at)
    derive(at)
    for name in PACKED:
        (at / f"{name}.gz").write_bytes(gzip.compress((at / name).read_bytes()))


def write_lines(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_texts(at: Path) -> None:
    import polars as pl

    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=9)) for _ in range(60)]
    (at / "few.txt").write_text("\n".join(texts) + "\n")
    write_lines(at / "few.jsonl", [{"text": text, "split": "train"} for text in texts])
    pl.DataFrame({"text": texts, "n": range(60)}).write_parquet(at / "few.parquet")
    chats = [[("system", "Be brief."), ("user", text), ("assistant", text.upper())] for text in texts]
    messages = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    write_lines(at / "chats.jsonl", [{"messages": chat} for chat in messages])
    write_lines(at / "completions.jsonl", [{"prompt": text, "completion": text.upper()} for text in texts])
    sums = [(a, b) for a in range(9) for b in (3, 14)]
    (at / "sums.txt").write_text("".join(f"{a}+{b}={a + b}\n" for a, b in sums))
    write_lines(at / "sums.jsonl", [{"input": f"{a}+{b}", "gold": a + b} for a, b in sums])


def write_questions(at: Path) -> None:
    """What `generate`, `search` and `inspect` read: prompts, choices, cases."""
    (at / "prompts.txt").write_text("1+2=\n3+4=\n5+16=\n")
    write_lines(at / "prompts.jsonl", [{"prompt": "1+2=", "answer": "3"}, {"prompt": "3+4="}])
    (at / "choices.txt").write_text("3\n7\n21\n")
    cases = [{"clean": "1+2=", "corrupt": "1+5=", "answer": "3", "wrong": "6"}]
    cases += [{"clean": "4+2=", "corrupt": "4+5=", "answer": "6", "wrong": "9"}]
    write_lines(at / "cases.jsonl", cases)


def write_places(at: Path) -> None:
    import polars as pl

    from linnet.domains.places.generated import Process, generate, write_check_ins

    write_check_ins(at / "v.csv", generate(Process(users=4, visits=20, own=4, venues=20)))
    pl.read_csv(at / "v.csv").write_parquet(at / "v.parquet")
    visits = [
        {"place": place, "start": f"2024-05-{day:02d}T18:05:00", "duration": 50}
        for day, place in enumerate("aba", 1)
    ]
    write_lines(at / "histories.jsonl", [{"id": i, "visits": visits} for i in range(3)])
    write_tracks(at)


def write_tracks(at: Path) -> None:
    """The same walks, at home and at work in turn, as GPX and as GeoJSON."""
    points = [
        (f"2024-05-{day:02d}T{hour:02d}:{minute:02d}:00Z", 10.0 + 0.01 * (hour % 2), 50.0)
        for day in range(1, 25)
        for hour in (8, 13)
        for minute in range(0, 60, 10)
    ]
    walked = "".join(
        f'<trkpt lat="{lat}" lon="{lon}"><time>{moment}</time></trkpt>\n' for moment, lon, lat in points
    )
    (at / "a.gpx").write_text(f'<?xml version="1.0"?>\n<gpx><trk><trkseg>\n{walked}</trkseg></trk></gpx>\n')
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
            "properties": {"time": moment, "user": "a"},
        }
        for moment, lon, lat in points
    ]
    (at / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def write_series(at: Path) -> None:
    """Values of three series in a wide and a long table, classes of waves, and a sensor with six channels."""
    import polars as pl

    draw = random.Random(0)
    series = [[round(50 + 9 * math.sin(t / 3 + n) + draw.random(), 3) for t in range(40)] for n in range(3)]
    wide = [f"S{n}," + ",".join(map(str, values)) for n, values in enumerate(series)]
    header = ",".join(["id", *(f"v{t + 1}" for t in range(40))])
    (at / "weekly.csv").write_text("\n".join([header, *wide]) + "\n")
    rows = [
        (f"S{n}", f"2024-{1 + t // 28:02d}-{1 + t % 28:02d}", value)
        for n in range(2)
        for t, value in enumerate(series[n])
    ]
    (at / "long.csv").write_text("id,time,value\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    pl.DataFrame(rows, schema=["id", "time", "value"], orient="row").write_parquet(at / "long.parquet")
    write_lines(at / "values.jsonl", [{"id": n, "values": series[n][:30]} for n in range(3)])
    labels = ["up" if n % 2 else "down" for n in range(12)]
    waves = [[round(math.sin(t / (2 + n % 2)) + draw.random(), 3) for t in range(24)] for n in range(12)]
    lines = [",".join([label, *map(str, wave)]) for label, wave in zip(labels, waves, strict=True)]
    (at / "waves.csv").write_text(
        ",".join(["label", *(f"v{t + 1}" for t in range(24))]) + "\n" + "\n".join(lines) + "\n"
    )
    cases = "".join(
        f"{','.join(map(str, wave))}:{','.join(map(str, wave[::-1]))}:{label}\n"
        for wave, label in zip(waves, labels, strict=True)
    )
    (at / "waves.ts").write_text(
        f"@problemName waves\n@timeStamps false\n@classLabel true up down\n@data\n{cases}"
    )
    write_sensor(at / "sensor.csv", draw)


def write_sensor(file: Path, draw: random.Random) -> None:
    lines = ["subject,recording,t,ax,ay,az,gx,gy,gz,label"]
    for subject in range(2):
        for recording, label in enumerate(("REST", "WALK")):
            for t in range(70):
                move = recording * 3 * math.sin(t / 4)
                values = [
                    move + draw.gauss(0, 0.1),
                    draw.gauss(0, 0.1),
                    9.8 + move / 2,
                    *(draw.gauss(0, 1 + recording) for _ in "xyz"),
                ]
                lines.append(
                    f"s{subject},{recording},{t}," + ",".join(f"{value:.3f}" for value in values) + f",{label}"
                )
    file.write_text("\n".join(lines) + "\n")


def train_runs(at: Path) -> None:
    from linnet import workbench

    sums = [*SMALL, "data.instances=40", "eval_every=2"]
    workbench.train("tiny-arithmetic", out=at / "sums", settings=sums, steps=4)
    try:
        workbench.train(
            "tiny-arithmetic", out=at / "unfinished", settings=UNFINISHED, steps=6, progress=Stopping()
        )
    except KeyboardInterrupt:
        assert not (at / "unfinished" / "record.json").exists()
    tokens = ["data.tokenizer.vocabulary=300"]
    workbench.train("tiny-text", out=at / "words", data=[at / "few.txt"], settings=[*SMALL, *tokens], steps=4)
    talking = [*SMALL, *tokens, "template=chatml"]
    workbench.train("tiny-text", out=at / "talks", data=[at / "chats.jsonl"], settings=talking, steps=1)
    workbench.train("tiny-places", out=at / "places", data=[at / "v.csv"], steps=2)
    stored = [*SMALL, *tokens, f'data.store="{at / "store"}"']
    workbench.train("tiny-text", out=at / "from-store", data=[at / "few.txt"], settings=stored, steps=1)


def train_runs_of_series(at: Path) -> None:
    from linnet import workbench

    workbench.train("tiny-forecast", out=at / "forecast", data=[at / "weekly.csv"], steps=2)
    workbench.train(
        "tiny-classify", out=at / "classes", data=[at / "waves.csv"], settings=["model.proportions=84"], steps=2
    )
    few = ["data.series=24", "data.validation=10"]
    workbench.train("tiny-captions", out=at / "captions", settings=few, steps=2)
    columns = [f"data.columns='{SENSOR}'"]
    workbench.train("tiny-rationale", out=at / "rationale", data=[at / "sensor.csv"], settings=columns, steps=2)


def derive(at: Path) -> None:
    """What is made of files and runs: exports, a tokenizer, samples, a saved search."""
    from linnet import workbench

    for to in ("hf", "gguf"):
        workbench.export_run(at / "words", at / ("hf" if to == "hf" else "m.gguf"), to=to)
    shutil.copytree(at / "hf", at / "t", ignore=shutil.ignore_patterns("*.safetensors", "config.json", "gen*"))
    list(workbench.search(at / "sums", ["1+2="], reward="exact", rollouts=8, max_tokens=4, out=at / "tree"))
    from typer.testing import CliRunner

    from linnet.cli.app import build

    made = CliRunner().invoke(
        build(), ["data", "make", "samples", "--data", str(at / "v.csv"), "--out", str(at / "s.jsonl")]
    )
    assert made.exit_code == 0, made.output
