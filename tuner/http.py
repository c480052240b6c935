"""HTTP client for everything but the load."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def _tls() -> ssl.SSLContext:
    """Load the machine's certificates once, since that is slow."""
    return ssl.create_default_context()


def control_client(base_url: str = "", *, timeout_s: float, api_key: str | None = None) -> httpx.Client:
    """Open a direct client, without proxy and .netrc."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, trust_env=False, verify=_tls())
