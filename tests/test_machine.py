"""What `linnet doctor` measures and concludes, and what it refuses to conclude on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linnet import machine
from linnet.machine import Peak, Speed, families, matmul_flops, peaks, product_notes, read_cpuinfo

SETS = ("avx2", "avx_vnni")


def quiet(gigaflops: float) -> Peak:
    return Peak.of([Speed(gigaflops * 1e9, 0.99)] * 3)


@pytest.mark.parametrize(
    ("text", "name", "sets"),
    [
        (
            "model name\t: Some CPU\nflags\t\t: fpu avx2 fma\n\nmodel name\t: Some CPU\n",
            "Some CPU",
            ("fma", "avx2"),
        ),
        ("processor : 0\nFeatures : fp asimd bf16\n", "", ("asimd", "bf16")),
        ("", "", ()),
    ],
)
def test_cpuinfo(text: str, name: str, sets: tuple[str, ...]) -> None:
    assert read_cpuinfo(text) == (name, sets)


def test_instruction_sets_are_named_by_family() -> None:
    assert families(("fma", "avx2")) == "AVX2"
    sets = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
    assert families(sets) == "AVX2, AVX-512 (VNNI, bf16), AMX (bf16, int8)"
    assert families(("asimd", "bf16")) == "NEON (bf16)"
    assert families(("sse4_2",)) == "none that speeds up matrix products"


def test_what_is_slow_is_explained() -> None:
    found = {"float32": quiet(100), "bfloat16": quiet(2), "int8": quiet(150)}
    assert product_notes(SETS, found, found, load=0.1) == [
        "bfloat16 products on the processor are 50 times slower than float32: it has no instructions for them",
        "int8 products on the processor are 1.5 times as fast as float32",
    ]


@pytest.mark.parametrize(
    "disturbed",
    [
        Peak.of([Speed(0.18e9, 0.45)] * 3),  # threads that wait for one that another program has put off
        Peak.of([Speed(90e9, 0.99), Speed(20e9, 0.99), Speed(25e9, 0.99)]),
    ],
)
def test_nothing_is_concluded_under_load(disturbed: Peak) -> None:
    together = {"float32": disturbed, "bfloat16": quiet(436), "int8": quiet(400)}
    single = {"float32": quiet(134), "bfloat16": quiet(400), "int8": quiet(300)}
    notes = product_notes(SETS, together, single, load=2.3)
    assert len(notes) == 1 and not any("times" in note for note in notes)
    assert f"the machine is busy (load 2.3 on {machine.cores()} cores" in notes[0] and "ask again" in notes[0]


def test_one_thread_that_is_faster_than_all_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "automatic_precision", lambda device, width: "float32")
    together, single = {"float32": quiet(50)}, {"float32": quiet(90)}
    assert "train with --set threads=1" in product_notes(SETS, together, single, load=0.0)[0]


def test_peaks_are_measured_in_several_rounds() -> None:
    flops = matmul_flops("float32", seconds=0.01)
    assert flops is not None and flops > 0
    found = peaks("cpu", seconds=0.02)
    assert {"float32", "bfloat16"} <= set(found)
    for peak in found.values():
        assert peak.flops > 0 and peak.unsteady >= 1 and 0 < peak.share <= 1


def test_a_share_of_the_processor_is_of_all_threads() -> None:
    """A product that sleeps uses no processor, however many threads it could use."""
    import time

    speed, took = machine.timed(lambda: time.sleep(0.05) or torch.zeros(()), 64, "cpu", 2)
    assert speed.share < 0.5 and took >= 0.05


def test_a_product_that_torch_has_not_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.PRECISIONS, "bool", torch.bool)
    assert matmul_flops("bool", seconds=0.01) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_the_peak_of_a_gpu_is_that_of_large_products() -> None:
    """A short measurement finds what a long one finds, though the first product wakes the device up."""
    short, long = matmul_flops("bfloat16", "cuda", seconds=0.5), matmul_flops("bfloat16", "cuda", seconds=3.0)
    assert short is not None and long is not None and 0.7 < short / long < 1.3


def test_kinds_of_processors_keep_their_compiled_graphs_apart(tmp_path: Path) -> None:
    """Below the folder of the user, the same for the processes that a process starts, another for another kind."""
    code = "from linnet.machine import graph_cache; print(graph_cache(), graph_cache())"
    found = {}
    for capability in ("default", torch.backends.cpu.get_cpu_capability().lower()):
        for given in (tmp_path, found.get("default", tmp_path)):
            environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(given)}
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
            first, second = map(Path, done.stdout.split())
            assert first == second and first.parent == tmp_path
            found.setdefault(capability, first)
            assert found[capability] == first
    assert len(set(found.values())) == len(found)
