"""HTTP client for everything but the load."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

import httpx

_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Certificates of common systems, for a Python whose OpenSSL looks elsewhere."""


@functools.cache
def tls(*, insecure: bool = False) -> ssl.SSLContext:
    """Load the machine's certificates once, since that is slow. `insecure` accepts any certificate."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):
        for bundle in filter(Path.is_file, map(Path, _BUNDLES)):
            context.load_verify_locations(bundle)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def control_client(
    base_url: str = "", *, timeout_s: float, api_key: str | None = None, insecure: bool = False
) -> httpx.Client:
    """Open a direct client, without proxy and .netrc."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(
        base_url=base_url, headers=headers, timeout=timeout_s, trust_env=False, verify=tls(insecure=insecure)
    )
