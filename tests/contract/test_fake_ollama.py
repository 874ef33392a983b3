"""The ways in which the fake Ollama can be run, beside the one that the other tests use."""

from __future__ import annotations

import signal
import subprocess
import sys

import aiohttp
import httpx
import pytest

from ollama_trainer.testing.fake_ollama import FakeOllama, Profile


@pytest.mark.parametrize("profile", ["0.33", "0.40"])
async def test_in_the_running_loop(profile: Profile) -> None:
    async with (
        FakeOllama(profile) as fake,
        aiohttp.ClientSession() as session,
        session.get(f"{fake.url}/api/version") as response,
    ):
        assert await response.json() == {"version": f"{profile}.0"}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to end it with")
def test_from_a_shell_with_faults_set_over_http() -> None:
    command = [sys.executable, "-m", "ollama_trainer.testing.fake_ollama", "--profile", "0.40"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        httpx.Client(trust_env=False) as client,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            assert client.get(f"{url}/api/version").json() == {"version": "0.40.0"}
            assert client.post(f"{url}/_fake", json={"no_such": 1}).status_code == 400
            state = client.post(f"{url}/_fake", json={"forbid": True, "answer": "x"}).json()
            assert state["faults"]["forbid"] is True
            assert client.get(f"{url}/api/version").status_code == 403
            # Faults do not lock out the one who sets them.
            assert client.post(f"{url}/_fake", json={"forbid": False}).status_code == 200
            requests = client.get(f"{url}/_fake").json()["requests"]
            assert requests == [["GET", "/api/version", None]]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_taken_port_is_told() -> None:
    with FakeOllama() as fake:
        command = [sys.executable, "-m", "ollama_trainer.testing.fake_ollama"]
        done = subprocess.run(
            [*command, "--port", str(fake.port)], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
