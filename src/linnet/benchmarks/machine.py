"""What this machine is and what it is good at: measured, never looked up, and kept nowhere.

The peaks are the best of a few large matrix products on this machine as it is now; other work that runs
beside them lowers them. They are a yardstick for training here, not a rating of the hardware.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from linnet.records import DoctorRecord
from linnet.training.resolve import NARROWEST_BFLOAT16, automatic_precision

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}

# What decides the speed of matrix products, in the words of /proc/cpuinfo (x86 first, then Arm).
TELLING = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
FAST_PRODUCTS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int8": {"avx_vnni", "avx512_vnni", "amx_int8", "i8mm", "asimddp"},
}


def matmul_flops(precision: str, device: str = "cpu", seconds: float = 0.4) -> float | None:
    """FLOP/s of the fastest square product met within `seconds`; None where torch has no such product."""
    dtype = PRECISIONS[precision]
    largest = 2048 if device == "cpu" else 8192
    best, size, began = 0.0, 128, time.perf_counter()
    while True:
        # On a busy machine a single small product may be caught in a pause, so the quickest of a few counts.
        tries = [_product_seconds(size, dtype, device) for _ in range(5 if size <= 512 else 1)]
        known = [took for took in tries if took is not None]
        if not known:
            return None
        took = min(known)
        best = max(best, 2.0 * size**3 / took)
        left = seconds - (time.perf_counter() - began)
        # The next size is eight times the work, twice: once to warm up and once that counts.
        if size < largest and 16 * took < left:
            size *= 2
        elif 2 * took > left:
            return best


def _product_seconds(size: int, dtype: torch.dtype, device: str) -> float | None:
    """One warm square product; None where torch refuses it."""
    left = torch.randn(size, size, device=device).mul_(8).to(dtype)  # some GPUs are faster with constants
    right = left.clone()
    product = torch._int_mm if dtype is torch.int8 else torch.matmul
    try:
        product(left, right)
    except RuntimeError:
        return None
    _wait(device)
    began = time.perf_counter()
    product(left, right)
    _wait(device)
    return max(time.perf_counter() - began, 1e-9)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def matmul_peaks(device: str, rounds: int = 3) -> dict[str, float]:
    """GFLOP/s by precision, where the device has it; taken in turn, so that a pause does not hit one alone."""
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for name in PRECISIONS:
            flops = matmul_flops(name, device)
            if flops is not None:
                peaks[name] = max(peaks.get(name, 0.0), round(flops / 1e9, 2))
    return peaks


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The name of the processor and its telling instruction sets, from the text of /proc/cpuinfo."""
    name, flags = "", set[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags.update(value.split())
    return name, tuple(flag for flag in TELLING if flag in flags)


def processor() -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets; where there is no /proc/cpuinfo, what torch found out."""
    path = Path("/proc/cpuinfo")
    name, sets = read_cpuinfo(path.read_text()) if path.exists() else ("", ())
    return name or platform.processor() or platform.machine(), sets or (torch.backends.cpu.get_cpu_capability(),)


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or the limit of its container where that is lower."""
    if sys.platform == "win32":
        return 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (allowed := limit.read_text().strip()).isdigit():
        return min(total, int(allowed))
    return total


def median(work: Callable[[], object], turns: int = 20) -> float:
    """Milliseconds; the first two calls do not count."""
    seconds = []
    for _ in range(turns + 2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[2:])


def one_line() -> str:
    """The machine in one line, for the record of a benchmark."""
    name, sets = processor()
    where = f"{torch.cuda.get_device_name()} and " if torch.cuda.is_available() else ""
    return f"{where}{name}, {torch.get_num_threads()} threads, {sets[-1]}, torch {torch.__version__}"


def doctor() -> DoctorRecord:
    """Everything that `linnet doctor` shows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, sets = processor()
    peaks = {f"cpu.{precision}": peak for precision, peak in matmul_peaks("cpu").items()}
    if device == "cuda":
        peaks |= {f"cuda.{precision}": peak for precision, peak in matmul_peaks("cuda").items()}
    memory_gb = round(memory_bytes() / 2**30, 1)
    return DoctorRecord(
        python=platform.python_version(),
        torch=torch.__version__,
        device=device,
        cpu=name,
        threads=torch.get_num_threads(),
        instruction_sets=sets,
        memory_gb=memory_gb,
        matmul_gflops=peaks,
        remarks=tuple(remarks(device, sets, peaks, memory_gb)),
    )


def remarks(device: str, sets: tuple[str, ...], peaks: dict[str, float], memory_gb: float) -> list[str]:
    """What is slow here, and why."""
    said = [_gpu_remark() if device == "cuda" else "there is no CUDA device: everything runs on the processor"]
    said += [
        _product_remark(name, known, sets, peaks)
        for name, known in FAST_PRODUCTS.items()
        if f"cpu.{name}" in peaks
    ]
    said.append(_precision_remark(device))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    busy = os.getloadavg()[0]
    if busy > 0.7 * cores:
        said.append(
            f"the machine is busy (load {busy:.1f} on {cores} cores): alone it is faster than measured here"
        )
    if torch.get_num_threads() < cores:
        said.append(f"torch uses {torch.get_num_threads()} of {cores} cores: OMP_NUM_THREADS or a limit says so")
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++", "cl")):
        said.append("there is no C++ compiler: models cannot be compiled on the processor")
    if 0 < memory_gb < 4:
        said.append(f"{memory_gb} GB of memory is little: batch, accumulation and context are the dials")
    return said


def _product_remark(name: str, known: set[str], sets: tuple[str, ...], peaks: dict[str, float]) -> str:
    ratio = peaks[f"cpu.{name}"] / peaks["cpu.float32"]
    if ratio >= 1:
        return f"{name} products on the processor are {ratio:.1f} times as fast as float32"
    has = (
        "has instructions for them that torch does not use"
        if known & set(sets)
        else "has no instructions for them"
    )
    return f"{name} products on the processor are {1 / ratio:.0f} times slower than float32: it {has}"


def _precision_remark(device: str) -> str:
    chosen = automatic_precision(device, NARROWEST_BFLOAT16)
    wide = f" from a width of {NARROWEST_BFLOAT16} on" if (device, chosen) == ("cpu", "bfloat16") else ""
    return f"precision auto trains in {chosen} here{wide}"


def _gpu_remark() -> str:
    facts = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    return f"the first of {count} CUDA devices is {facts.name} with {facts.total_memory / 2**30:.0f} GB"
