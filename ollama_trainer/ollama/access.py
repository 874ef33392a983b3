"""The way to an Ollama that others guard: its key, its certificate, what a proxy refuses.

Ollama itself knows neither keys nor TLS. Where it is to be reached from elsewhere, a reverse proxy
before it does.
"""

from __future__ import annotations

import os
import re
import ssl

import httpx

from ollama_trainer.errors import PublishError
from ollama_trainer.ollama.host import Endpoint

KEY_VARIABLE = "OLLAMA_API_KEY"
_KEY = re.compile(r"[\x21-\x7e]+")
_ASK = "Ask whoever runs the proxy before Ollama."
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def api_key() -> str:
    """What OLLAMA_API_KEY holds; empty where it is not set.

    Raises:
        PublishError: it can be no key. The message does not show it.
    """
    value = os.environ.get(KEY_VARIABLE, "")
    key = value.strip()
    # Said here, since the error of whoever writes the header would show the key.
    if value and not _KEY.fullmatch(key):
        raise PublishError(
            f"{KEY_VARIABLE} holds something that can be no key: blanks, line breaks or letters "
            "beyond ASCII, or nothing else",
            "Set it to the key alone, or unset it.",
        )
    return key


def trusted(endpoint: Endpoint) -> ssl.SSLContext:
    """Whose certificates are trusted: the system's authorities, as by Ollama's own client.

    SSL_CERT_FILE and SSL_CERT_DIR, where set, name others in their place. (Not left to
    httpx, which never looks at the system's, nor at these variables where it is to use no proxy.)

    Raises:
        PublishError: a variable names what holds no certificates.
    """
    if not endpoint.url.startswith("https:"):
        # Nothing is asked by TLS, and reading all authorities takes its time.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        if file or folder:
            return ssl.create_default_context(cafile=file or None, capath=folder or None)
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
    except OSError as error:
        raise PublishError(
            f"the certificates in {file or folder} cannot be read ({error}), which "
            f"{'SSL_CERT_FILE' if file else 'SSL_CERT_DIR'} names",
            "Let SSL_CERT_FILE name a PEM file with the certificate of the authority.",
        ) from error
    return context


def tls_failure(url: str, error: BaseException) -> PublishError | None:
    """What it means where a connection failed for its TLS; None where it did not."""
    reason = _tls_error(error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return PublishError(
            f"the certificate of {url} is not trusted ({reason.verify_message})",
            "Let SSL_CERT_FILE name a PEM file with the certificate of its authority, for the "
            "server and the command line alike, and let OLLAMA_HOST name the host that the "
            "certificate is made for.",
        )
    if reason is not None and "WRONG_VERSION_NUMBER" in str(reason):
        return PublishError(
            f"what answers at {url} does not speak TLS", "Write OLLAMA_HOST with http://."
        )
    return None


def refusal(url: str, what: str, status: int, text: str, location: str) -> PublishError | None:
    """What a status means that Ollama itself never answers with; None for any other.

    Args:
        what: was asked for, as after "to".
        text: what was said, in words.
        location: where a redirection leads; empty where that is not known.
    """
    said = f"{status}: {text}" if text else f"{status}"
    if 300 <= status < 400:
        there = f" to {location}" if location else ""
        return PublishError(
            f"what answers at {url} sends whoever asks elsewhere{there} ({status})",
            "Let OLLAMA_HOST name the address that it leads to, scheme and path included.",
        )
    if status == 401:
        has_key = os.environ.get(KEY_VARIABLE)
        return PublishError(
            f"what answers at {url} wants {'another' if has_key else 'a'} key to {what} ({said})",
            f"Set {KEY_VARIABLE} to one that it takes, for the server and the command line alike.",
        )
    if status == 403 and text:
        return PublishError(f"what answers at {url} does not allow to {what} ({said})", _ASK)
    if status == 413:
        return PublishError(
            f"what answers at {url} does not let so large a body through, to {what} ({said})",
            "Raise the limit of the proxy before Ollama above the size of the GGUF (nginx: "
            "client_max_body_size), or call Ollama without it.",
        )
    return None


def in_words(text: str) -> str:
    """A body without its HTML, and without the key, should anyone have sent it back."""
    if text.lstrip().startswith("<"):
        title = _TITLE.search(text)
        text = title[1].strip() if title else ""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return text.replace(key, "…") if key else text


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        # The package `ollama` hides what led to its own error, and keeps it.
        seen = seen.__cause__ or seen.__context__
    return None
