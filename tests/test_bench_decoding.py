"""The benchmark of decoding: equality first, then every system in turn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bench import decoding
from bench.decoding import bench_decode, check_equal
from bench.decoding_systems import CTranslate2, Ours, portable_model, random_model
from bench.training import Shape
from linnet.cli.app import build
from linnet.decoding.products import packed
from linnet.decoding.runner import Runner
from linnet.errors import BadInput, RunFailed

TINY = Shape(depth=1, width=64, heads=2, vocabulary=97, context=264)


def test_each_scene_has_a_record_of_each_number_format():
    found = list(
        bench_decode(
            TINY,
            weights=("float32", "int8"),
            rows=2,
            tokens=4,
            repeats=1,
            compile=False,
            only="stream",
            device="cpu",
        )
    )
    assert [record.name for record in found] == [
        "decode 1x64, one stream, float32",
        "decode 1x64, one stream, int8",
    ]
    for record, other in zip(found, ("int8", "float32"), strict=True):
        wanted = {f"linnet {other}", "transformers float32"}
        assert wanted <= set(record.peers) and record.ours > 0
        assert "2560 greedy tokens equal those of transformers" in record.note
        assert set(record.ratios) == set(record.peers)
        for name, library, package in (
            ("CTranslate2", "ctranslate2", "ctranslate2"),
            ("llama.cpp", "llama_cpp", "llama-cpp-python"),
        ):
            missing = importlib.util.find_spec(library) is None
            assert (name in record.peers and record.peers[name] is None) == missing
            assert (f"{name} not installed: pip install {package}" in record.note) == missing


def test_systems_that_write_different_tokens_are_not_timed():
    mine, other = random_model(TINY), random_model(TINY)
    with torch.no_grad():
        other.head.weight.copy_(other.head.weight.flip(0))
    with pytest.raises(RunFailed, match=r"differ at token \d of a prompt: nothing is timed"):
        check_equal(
            Ours(Runner(packed(mine, "float32"))), Ours(Runner(other)), TINY.vocabulary, prompts=2, tokens=3
        )


def test_a_context_that_the_scenes_do_not_fit_into_is_refused():
    with pytest.raises(BadInput, match="the scenes need a context of 320 tokens, and this shape has 264"):
        list(bench_decode(TINY, weights=("float32",)))
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="there is no CUDA device here"):
            list(bench_decode(TINY, tokens=4, device="cuda"))
    with pytest.raises(BadInput, match="tokens is 1; it must be at least 2"):
        list(bench_decode(TINY, weights=("float32",), tokens=1))
    with pytest.raises(BadInput, match="weights cannot be in int3"):
        list(bench_decode(TINY, weights=("int3",)))
    with pytest.raises(BadInput, match="no scene has 'nothing' in its name; there are 'one stream', '64 prompts'"):
        list(bench_decode(TINY, tokens=4, only="nothing"))


@pytest.mark.skipif(
    importlib.util.find_spec("ctranslate2") is None, reason="a peer of the benchmark only: pip install ctranslate2"
)
def test_ctranslate2_writes_the_same_tokens(tmp_path: Path) -> None:
    model = random_model(TINY)
    theirs = CTranslate2(portable_model(model), tmp_path, "float32", threads=1)
    prompts = [(5, 6, 7), (8, 9, 10)]
    assert theirs.decode(prompts, 1, 12, True) == Ours(model).decode(prompts, 1, 12, True)
    assert [len(ids) for ids in theirs.decode(prompts, 3, 5, False)] == [5] * 6


@pytest.mark.parametrize(
    "shape, setting, reason",
    [("1x64", "heads=3", "64"), ("0x0", "heads=1", "depth"), ("1x65", "heads=8", "65")],
)
@pytest.mark.parametrize("verb", ["train", "decode"])
def test_a_shape_that_no_model_has_is_refused(verb: str, shape: str, setting: str, reason: str) -> None:
    result = CliRunner().invoke(build(), ["bench", verb, "--shape", shape, "--set", setting])
    assert result.exit_code == 2, result.stderr
    assert f"there is no model of the shape {shape} with {setting[-1]} heads" in result.stderr
    assert reason in result.stderr.partition("heads: ")[2]


def test_on_a_gpu_only_programs_that_run_there_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "native_bfloat16", lambda device: True)
    assert [system.name for system in decoding.peers("cuda")] == [
        "transformers float32", "transformers bfloat16", "transformers bfloat16 static",
    ]  # fmt: skip
    assert set(decoding.absent("cuda").values()) == {"skipped: measured on the processor only"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_decoding_is_measured_on_a_gpu() -> None:
    found = list(bench_decode(TINY, rows=2, tokens=4, repeats=1, compile=False, only="prompts", device="cuda"))
    assert [record.name.rpartition(", ")[2] for record in found] == ["float32", "bfloat16"]
    assert all(record.ours > 0 and record.peers["transformers float32"] for record in found)
