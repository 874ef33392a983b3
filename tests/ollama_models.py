"""Models for a real Ollama or the fake one, created as its command line creates them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx


def create(url: str, name: str, *files: Path, **more: Any) -> str:
    """Uploads the files and creates a model of them; returns its name.

    Args:
        more: further fields of the request, such as `template`.
    """
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
        digests = {}
        for file in files:
            data = file.read_bytes()
            digests[file.name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
            sent = client.post(f"/api/blobs/{digests[file.name]}", content=data)
            assert sent.status_code in (200, 201), sent.text
        body = {"model": name, "files": digests, "stream": False, **more}
        created = client.post("/api/create", json=body)
    assert created.json() == {"status": "success"}, created.text
    return name
