"""What this machine can do, one finding per thing that a run or a fit may need; nothing heavy is imported before it is asked for."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from speedlit.errors import SpeedlitError
from speedlit.synthesis.wire import Endpoint, read_key
from speedlit.workers import cores

OK, MEAGRE, BAD = "ok", "--", "!!"  # there; not there or slow, which only some configs mind; broken
LITTLE_DISK, LITTLE_SHM = 2e9, 256e6
EXTRAS = (
    ("xgrammar", "sampling.structured: pip install 'speedlit[structured]'"),
    ("onnxruntime", "export --format onnx: pip install 'speedlit[onnx]'"),
    ("sentence_transformers", "proving exported folders: pip install sentence-transformers"),
    ("tensorboard", "looking at the curves in runs/fit/curves: pip install tensorboard"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        mark: ``ok``, ``--`` or ``!!``.
        name: of what was looked at.
        text: what was found.
        remedy: what to do about it; empty where there is nothing to do.
    """

    mark: str
    name: str
    text: str
    remedy: str = ""


def machine() -> list[Finding]:
    """All findings about this machine, in the order in which a person reads them."""
    checks: tuple[Callable[[], list[Finding]], ...] = (python, processor, memory, torch_itself, devices, precision, four_bits, extras, slurm, disks, endpoint)
    return [finding for check in checks for finding in check()]


def python() -> list[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} in {sys.prefix}"
    old = sys.version_info < (3, 10)
    return [Finding(BAD if old else OK, "Python", text, "speedlit needs Python 3.10 or newer" if old else "")]


def processor() -> list[Finding]:
    """Cores, and the threads that torch may take."""
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{cores()} usable of {os.cpu_count()}; OMP_NUM_THREADS is {threads or 'not set'}"
    many = bool(threads and threads.isdigit() and int(threads) > cores())
    return [Finding(MEAGRE if many else OK, "cores", text, f"more threads than cores are slow: OMP_NUM_THREADS={cores()}" if many else "")]


def memory() -> list[Finding]:
    """Memory that is free, a container's limit included."""
    import torch

    from speedlit.models.memory import free_bytes

    free = free_bytes(torch.device("cpu"))
    return [Finding(OK if free > 2e9 else MEAGRE, "memory", f"{size(free)} free", "" if free > 2e9 else "the demo needs about 3 GB: end other programs")]


def torch_itself() -> list[Finding]:
    """torch and the libraries that have to fit it."""
    import torch

    names = ("lightning", "transformers", "peft")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return [Finding(OK, "torch", f"{torch.__version__}, {torch.get_num_threads()} threads; {versions}")]


def devices() -> list[Finding]:
    """GPUs, each with its memory."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        hint = "this torch is built without CUDA; on a machine with GPUs install one that is" if not built and shutil.which("nvidia-smi") else ""
        return [Finding(MEAGRE, "GPUs", "none; small models train on the CPU", hint)]
    rows = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [Finding(OK, f"GPU {number}", f"{row.name}, {size(row.total_memory)}") for number, row in enumerate(rows)]


def precision() -> list[Finding]:
    """How bfloat16 is computed."""
    import torch

    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return [Finding(OK if able else MEAGRE, "bfloat16", "on the GPU" if able else "emulated on this GPU", "" if able else "--trainer.precision 16-mixed")]
    found = fast_bfloat16()
    if found:
        return [Finding(OK, "bfloat16", f"{' and '.join(found)} on the CPU")]
    return [Finding(MEAGRE, "bfloat16", "right but slow: this CPU has neither AMX nor AVX512-BF16", "train in float32: --trainer trainer/cpu.yaml")]


def fast_bfloat16() -> list[str]:
    """The instruction sets of this CPU that multiply bfloat16."""
    info = Path("/proc/cpuinfo")
    flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "").split() if info.is_file() else []
    return [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if flag in flags]


def four_bits() -> list[Finding]:
    """Whether bitsandbytes really packs and unpacks weights here: that it can be imported says little."""
    trouble = bitsandbytes_trouble()
    if trouble:
        return [Finding(MEAGRE, "bitsandbytes", trouble, "QLoRA and 8-bit optimizers won't work: use LoRA (--model.adapter adapter/lora.yaml) and AdamW")]
    return [Finding(OK, "bitsandbytes", f"{importlib.metadata.version('bitsandbytes')}, packs and unpacks NF4 here")]


def bitsandbytes_trouble() -> str:
    """Why 4-bit weights can't be used on this machine; empty where they can."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it tells of kernels that it could fetch
    try:
        from bitsandbytes import functional

        weights = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
        off = (functional.dequantize_4bit(*functional.quantize_4bit(weights, quant_type="nf4")) - weights).abs().max().item()
    except Exception as error:  # noqa: BLE001 (a broken native library fails in any way it likes; the finding says how)
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no message'}"
    return "" if off < 0.2 else f"packs weights wrongly on {device} (off by {off:.2g})"


def extras() -> list[Finding]:
    """Packages that only some configs need."""
    missing = [Finding(MEAGRE, name, "not installed", f"only needed for {what}") for name, what in EXTRAS if find_spec(name) is None]
    there = [name for name, _ in EXTRAS if find_spec(name) is not None]
    return ([Finding(OK, "extras", ", ".join(there))] if there else []) + missing


def slurm() -> list[Finding]:
    """Whether jobs can be submitted from here."""
    if "SLURM_JOB_ID" in os.environ:
        return [Finding(OK, "Slurm", f"inside job {os.environ['SLURM_JOB_ID']}")]
    if not shutil.which("sbatch"):
        return [Finding(MEAGRE, "Slurm", "no sbatch here; --executor slurm won't work")]
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%P %D"], capture_output=True, text=True, timeout=10)
        trouble = done.stderr.strip().split("\n")[0][:120] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        trouble = str(error)
    if trouble:
        return [Finding(MEAGRE, "Slurm", trouble, "--executor slurm won't work from here; is the controller up? `scontrol ping`")]
    return [Finding(OK, "Slurm", "partitions and nodes: " + ", ".join(done.stdout.split("\n")[:6]).strip(", "))]


def disks() -> list[Finding]:
    """Room in this folder, and in the shared memory that loader processes use."""
    return [disk(Path.cwd()), shared_memory()]


def disk(folder: Path) -> Finding:
    """Room where ``folder`` is, or would be made, and whether it can be written."""
    place = next(part for part in (folder.absolute(), *folder.absolute().parents) if part.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding(BAD, "disk", f"{place} can't be written", "choose another folder: --root DIR (run), --trainer.default_root_dir DIR (fit)")
    little = free < LITTLE_DISK
    return Finding(BAD if little else OK, "disk", f"{size(free)} free in {place}", "free some room, or choose another folder" if little else "")


def shared_memory() -> Finding:
    """``/dev/shm``; containers often have 64 MB."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding(MEAGRE, "/dev/shm", "not there", "keep data.workers at 0")
    free = shutil.disk_usage(place).free
    little = free < LITTLE_SHM
    hint = "keep data.workers at 0, or start the container with --shm-size=1g"
    return Finding(MEAGRE if little else OK, "/dev/shm", f"{size(free)} free", hint if little else "")


def endpoint() -> list[Finding]:
    """The teacher that the environment names."""
    url = os.environ.get("OPENAI_BASE_URL")
    if url:
        return [reach("teacher", url)]
    return [Finding(MEAGRE, "teacher", "OPENAI_BASE_URL names none; the embedded one works without")]


def reach(name: str, url: str | None) -> Finding:
    """Whether a server answers at an address. The key isn't sent: any answer will do."""
    try:
        server, key = Endpoint(url), read_key()
    except SpeedlitError as error:
        return Finding(BAD, name, str(error))
    said = "a key is set" if key else "no key is set (OPENAI_API_KEY)"
    handlers = [ProxyHandler({})] if server.host in ("127.0.0.1", "localhost", "::1") else []
    try:
        with build_opener(*handlers).open(urllib.request.Request(f"{server.name}/models"), timeout=10):
            return Finding(OK, name, f"{server.name} answers; {said}")
    except urllib.error.HTTPError as error:
        keyless = error.code in (401, 403) and not key
        text = f"{server.name} answers with status {error.code}; {said}"
        return Finding(BAD if keyless else OK, name, text, "put the key into OPENAI_API_KEY" if keyless else "")
    except (urllib.error.URLError, HTTPException, OSError) as error:
        why = getattr(error, "reason", None) or error
        return Finding(BAD, name, f"{server.name} does not answer ({why})", "start the server, or name another in teacher.base_url or OPENAI_BASE_URL")


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
