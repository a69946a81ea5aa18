"""What this machine is and what it is good at: measured now, never looked up, and kept nowhere.

The peaks are those of a few large matrix products. They are a yardstick for training here, not a rating of the
hardware; other work that runs beside them lowers them, so nothing is concluded from them on a busy machine.
"""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from linnet.records import DoctorRecord

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
SIZES = {"cpu": (128, 256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
BLOCK_SECONDS = 0.01  # of products that are timed together
ROUNDS = 3  # in which a peak is measured
NARROWEST_BFLOAT16 = 64  # the narrowest width at which it was measured to be faster (dev/LOG.md)
BUSY = 0.8  # threads of a quiet machine get a larger share of their time on the processor
UNSTEADY = 1.5  # the best of a few equal products over the median, where something else disturbs them

# What decides the speed of matrix products, in the words of /proc/cpuinfo (x86 first, then Arm).
RELEVANT = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
FAMILIES = {  # a family, the set that stands for it, and its extensions
    "AVX2": ("avx2", {"avx_vnni": "VNNI"}),
    "AVX-512": ("avx512f", {"avx512_vnni": "VNNI", "avx512_bf16": "bf16", "avx512_fp16": "fp16"}),
    "AMX": ("amx_tile", {"amx_bf16": "bf16", "amx_int8": "int8"}),
    "NEON": ("asimd", {"asimddp": "dot products", "bf16": "bf16", "i8mm": "int8"}),
    "SVE": ("sve", {"sve2": "SVE2"}),
}
FAST_PRODUCTS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "int8": {"avx_vnni", "avx512_vnni", "amx_int8", "i8mm", "asimddp"},
}


# --- what it has ---------------------------------------------------------------------------------------


def native_bfloat16(device: str) -> bool:
    """Whether this device has instructions for products in bfloat16."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The mixed-precision region of this run; nothing in float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def automatic_precision(device: str, width: int) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the products are native and large enough to gain from it."""
    wide = device == "cuda" or width >= NARROWEST_BFLOAT16
    return "bfloat16" if wide and native_bfloat16(device) else "float32"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch inside, and as before outside; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compiler_at_hand(device: str) -> bool:
    """Models are compiled for the processor with a C++ compiler; CUDA brings its own."""
    return device != "cpu" or any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The name of the processor and its relevant instruction sets, from the text of /proc/cpuinfo."""
    name, flags = "", set[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags.update(value.split())
    return name, tuple(flag for flag in RELEVANT if flag in flags)


def processor() -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets; where there is no /proc/cpuinfo, what torch found out."""
    path = Path("/proc/cpuinfo")
    name, sets = read_cpuinfo(path.read_text()) if path.exists() else ("", ())
    return name or platform.processor() or platform.machine(), sets or (torch.backends.cpu.get_cpu_capability(),)


def families(sets: Sequence[str]) -> str:
    """The instruction sets in the words of their makers, as `AVX2, AVX-512 (VNNI, bf16)`."""
    found = []
    for family, (flag, extensions) in FAMILIES.items():
        if flag in sets:
            extra = ", ".join(name for extension, name in extensions.items() if extension in sets)
            found.append(f"{family} ({extra})" if extra else family)
    return ", ".join(found) or "none that speeds up matrix products"


def graph_cache() -> Path:
    """The folder where torch keeps graphs that it compiled on this kind of processor.

    torch finds a kept graph by its computation alone, and takes one that was made for wider or narrower vectors on
    another machine, or under another ATEN_CPU_CAPABILITY: such a graph reads and writes past its values (NaN, or
    a crash). So each kind of processor gets a folder of its own, below the one that torch would use.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    kind = "/".join((platform.machine(), processor()[0], torch.backends.cpu.get_cpu_capability(), *flags))
    name = "processor-" + hashlib.blake2b(kind.encode(), digest_size=6).hexdigest()
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    usual = Path(tempfile.gettempdir()) / ("torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser()))
    folder = Path(given) if given else usual  # asking torch itself would load its whole compiler
    if folder.name != name:
        folder = (folder.parent if folder.name.startswith("processor-") else folder) / name
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return folder


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or the limit of its container where that is lower."""
    if sys.platform == "win32":
        return 0
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (allowed := limit.read_text().strip()).isdigit():
        return min(total, int(allowed))
    return total


def cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def one_line() -> str:
    """The machine in one line, for the record of a benchmark."""
    name, sets = processor()
    gpu = f"{torch.cuda.get_device_name()} and " if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{gpu}{name}, {threads} thread{'s' * (threads > 1)}, {sets[-1]}, torch {torch.__version__}"


# --- what it reaches -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Some equal products that were timed together."""

    flops: float  # a second
    share: float  # of the time of its threads, in which they were on the processor


def matmul_flops(precision: str, device: str = "cpu", seconds: float = 0.4) -> float | None:
    """FLOP/s of the fastest square product met within about `seconds`; None where torch has no such product."""
    return max((speed.flops for speed in product_speeds(precision, device, seconds)), default=None)


def product_speeds(precision: str, device: str, seconds: float) -> list[Speed]:
    """Products of growing size, and the largest that there is time for again and again; at least one.

    The clock starts when the first product is done: what a device needs to wake up is not part of its speed.
    """
    found: list[Speed] = []
    ends = 0.0
    for size in SIZES[device]:
        try:
            product = square_product(size, PRECISIONS[precision], device)
        except RuntimeError:  # torch has no such product here
            return found
        ends = ends or time.perf_counter() + seconds
        speed, took = timed(product, size, device, 1)
        found.append(speed)
        # The next size is eight times the work: once to warm up, once timed, and then some repetitions.
        if size == SIZES[device][-1] or 30 * took > ends - time.perf_counter():
            break
    times = max(1, round(BLOCK_SECONDS / took))
    while time.perf_counter() < ends or len(found) < 3:
        found.append(timed(product, size, device, times)[0])
    if device == "cuda":  # the operands of the largest are of the size of a small model
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def square_product(size: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """A product that has run once; RuntimeError where torch has none of this kind."""
    left = torch.randn(size, size, device=device).mul_(8).to(dtype)  # some GPUs are faster with constants
    right = left.clone()
    multiply = torch._int_mm if dtype is torch.int8 else torch.matmul

    def product() -> Tensor:
        return multiply(left, right)

    product()
    synchronize(device)
    return product


def synchronize(device: str) -> None:
    """Wait for what a GPU has been given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(product: Callable[[], Tensor], size: int, device: str, times: int) -> tuple[Speed, float]:
    """The speed of this product repeated so often, and the seconds that one takes."""
    began, worked = time.perf_counter(), time.process_time()
    for _ in range(times):
        product()
    synchronize(device)
    seconds, work = max(time.perf_counter() - began, 1e-9), time.process_time() - worked
    share = 1.0 if device == "cuda" else min(1.0, work / seconds / torch.get_num_threads())
    return Speed(2.0 * size**3 * times / seconds, share), seconds / times


@dataclass(frozen=True)
class Peak:
    """The best of several rounds, and how steady they were."""

    flops: float
    unsteady: float  # the best over the median
    share: float  # the median share of the processor

    @classmethod
    def of(cls, speeds: Sequence[Speed]) -> Peak:
        flops = [speed.flops for speed in speeds]
        best = max(flops)
        return cls(best, best / statistics.median(flops), statistics.median(speed.share for speed in speeds))

    @property
    def disturbed(self) -> bool:
        return self.share < BUSY or self.unsteady > UNSTEADY


def peaks(device: str, seconds: float = 0.15) -> dict[str, Peak]:
    """By precision, where the device has it; taken in turn, so that a pause does not hit one alone."""
    rounds: dict[str, list[Speed]] = {}
    for _ in range(ROUNDS):
        for name in PRECISIONS:
            # The largest products of a round, of which there are three at least.
            rounds.setdefault(name, []).extend(product_speeds(name, device, seconds)[-3:])
    return {name: Peak.of(speeds) for name, speeds in rounds.items() if speeds}


# --- what follows from it --------------------------------------------------------------------------------


def doctor() -> DoctorRecord:
    """Everything that `linnet doctor` shows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, sets = processor()
    threads, load = torch.get_num_threads(), os.getloadavg()[0] if sys.platform != "win32" else 0.0
    found = peaks("cpu")
    shown = {f"cpu.{precision}": peak for precision, peak in found.items()}
    single = found
    if threads > 1:
        torch.set_num_threads(1)
        single = peaks("cpu")
        torch.set_num_threads(threads)
        shown |= {f"cpu.{precision}, 1 thread": peak for precision, peak in single.items()}
    if device == "cuda":
        shown |= {f"cuda.{precision}": peak for precision, peak in peaks("cuda").items()}
    memory_gb = round(memory_bytes() / 2**30, 1)
    notes = [
        gpu_note() if device == "cuda" else "there is no CUDA device: everything runs on the processor",
        f"instruction sets: {families(sets)}; torch uses {torch.backends.cpu.get_cpu_capability()}",
        *product_notes(sets, found, single, load),
        *machine_notes(device, memory_gb),
    ]
    return DoctorRecord(
        python=platform.python_version(),
        torch=torch.__version__,
        device=device,
        cpu=name,
        threads=threads,
        instruction_sets=sets,
        memory_gb=memory_gb,
        matmul_gflops={name: round(peak.flops / 1e9, 2) for name, peak in shown.items()},
        remarks=tuple(notes),
    )


def product_notes(
    sets: Sequence[str], together: Mapping[str, Peak], single: Mapping[str, Peak], load: float
) -> list[str]:
    """Which precision is fast here. On a busy machine pauses decide what is measured, so nothing is concluded."""
    notes = []
    trained = automatic_precision("cpu", NARROWEST_BFLOAT16)
    if together[trained].flops < single[trained].flops:
        notes.append(
            "one thread is faster here than all of them, as on a busy machine: train with --set threads=1"
        )
    if disturbed := [name for name, peak in together.items() if peak.disturbed]:
        share = min(together[name].share for name in disturbed)
        return [
            *notes,
            f"the machine is busy (load {load:.1f} on {cores()} cores; the measured threads ran {share:.0%} of "
            "the time): which precision is fast here was not decided; ask again when it is quiet",
        ]
    for name, instructions in FAST_PRODUCTS.items():
        if name in together:
            ratio = together[name].flops / together["float32"].flops
            has = "has instructions for them that torch does not use"
            if not instructions & set(sets):
                has = "has no instructions for them"
            slower = f"{1 / ratio:.0f} times slower than float32: it {has}"
            found = f"{ratio:.1f} times as fast as float32" if ratio >= 1 else slower
            notes.append(f"{name} products on the processor are {found}")
    return notes


def gpu_note() -> str:
    facts = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    return f"the first of {count} CUDA devices is {facts.name} with {facts.total_memory / 2**30:.0f} GB"


def machine_notes(device: str, memory_gb: float) -> list[str]:
    """What training chooses here, and what is missing or little."""
    chosen = automatic_precision(device, NARROWEST_BFLOAT16)
    wide = f" from a width of {NARROWEST_BFLOAT16} on" if (device, chosen) == ("cpu", "bfloat16") else ""
    notes = [f"precision auto trains in {chosen} here{wide}"]
    if torch.get_num_threads() < cores():
        notes.append(
            f"torch uses {torch.get_num_threads()} of {cores()} cores: OMP_NUM_THREADS or a limit says so"
        )
    if not compiler_at_hand("cpu"):
        notes.append("there is no C++ compiler: models cannot be compiled on the processor")
    if 0 < memory_gb < 4:
        notes.append(f"{memory_gb} GB of memory is little: batch, accumulation and context are the dials")
    return notes


# --- memory: glibc hands large buffers back to the system and asks for them anew in every step, which costs page
# faults; a process that trains keeps them instead. What that gains is in dev/LOG.md.

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
LARGE = 32 << 20  # bytes; the largest threshold that glibc takes


def keep_freed_memory() -> bool:
    """Tell glibc neither to map large buffers apart nor to give memory back; False where there is no glibc."""
    return _set_allocator({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20})


def keep_freed_buffers() -> bool:
    """The same for buffers of up to `LARGE` bytes; larger ones, such as those that grow, go back to the system."""
    return _set_allocator({M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: 16 * LARGE, M_TOP_PAD: 2 * LARGE})


def _set_allocator(options: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl: its own ways are fine
        return False
    return all([mallopt(option, value) for option, value in options.items()])
