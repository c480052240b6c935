"""Fixtures that many tests share: the tiny model and the real vLLM."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.support import note_children

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _children_noted() -> None:
    note_children()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny random-weight model, made as `make demo` makes it."""
    made = ROOT / ".cache" / "tiny-model"
    if not (made / "config.json").is_file():
        made = tmp_path_factory.mktemp("model") / "tiny-model"
        subprocess.run([sys.executable, ROOT / "scripts" / "make_tiny_model.py", made], check=True)
    return str(made)


@pytest.fixture(scope="session")
def vllm_command() -> tuple[str, ...]:
    """Words that start the real vLLM. Without one, CI fails and a local run skips."""
    program = shutil.which("vllm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no vLLM is installed: run `make env`")
        pytest.skip("no vLLM is installed: run `make env`")
    return (program, "serve")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a key and a certificate that nobody signed, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", *files],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.fixture(scope="session")
def own_certificate(certificate: Path) -> ssl.SSLContext:
    """Return a server's context with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
