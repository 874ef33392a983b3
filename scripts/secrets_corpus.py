"""A planted corpus that judges what finds secrets: made-up secrets in lines, and harmless lines.

Nothing here is a real secret. Tokens are put together at run time, so that no line of this file
looks like one. `python scripts/secrets_corpus.py [SEED]` judges the project's own finder.
"""

from __future__ import annotations

import json
import random
import re
import string
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from harmless_lines import harmless

ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
URLSAFE = ALNUM + "_-"
BASE64 = ALNUM + "+/"
N_SECRETS = 200
# A run of this many characters of a secret that is left over counts as the secret missed.
LEFT_OVER = 6


class Finder(Protocol):
    """What is judged."""

    def redact(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The text with its secrets hidden, and the kinds of these."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A line, the secret in it as it is spelled there, and the family of the secret."""

    line: str
    secret: str
    family: str


class Maker:
    """Random parts of secrets."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def run(self, alphabet: str, low: int, high: int | None = None) -> str:
        length = self.rng.randint(low, low if high is None else high)
        return "".join(self.rng.choice(alphabet) for _ in range(length))

    def pick(self, *choices: str) -> str:
        return self.rng.choice(choices)

    def password(self) -> str:
        """As people choose them: words with digits, or from a generator, some with odd marks."""
        word = self.pick("Sommer", "dragon", "Blue!Whale", "tr0ub4dor", "paris", "Kaffee", "qwertz")
        made = self.pick(
            f"{word}{self.run(string.digits, 2, 4)}!",
            f"{word}-{self.run(string.ascii_lowercase, 5)}-{self.run(string.digits, 2)}",
            self.run(ALNUM + "!@#%^*_+-", 12, 20),
            f"{word}${self.run(ALNUM, 5, 8)}",
            f"{word}{self.pick('ß', 'é', '€', 'ñ')}{self.run(ALNUM, 6)}",
        )
        return made.strip("-_")

    def base64_lines(self, lines: int) -> list[str]:
        return [self.run(BASE64, 64) for _ in range(lines)] + [self.run(BASE64, 30) + "=="]


def _token_families(m: Maker) -> dict[str, Callable[[], str]]:
    """Tokens that tell by their form what they are."""
    digits = string.digits
    upper32 = string.ascii_uppercase + "234567"
    return {
        "aws-id": lambda: m.pick("AK", "AS") + "IA" + m.run(upper32, 16),
        "github": lambda: m.pick("gh" + "p_", "gh" + "o_", "gh" + "s_") + m.run(ALNUM, 36),
        "github-fine": lambda: "github" + "_pat_" + m.run(ALNUM, 22) + "_" + m.run(ALNUM, 59),
        "gitlab": lambda: "gl" + "pat-" + m.run(URLSAFE, 20),
        "slack": lambda: (
            "xo"
            + m.pick("xb", "xp")
            + f"-{m.run(digits, 12)}-{m.run(digits, 12)}-{m.run(ALNUM, 24)}"
        ),
        "slack-hook": lambda: (
            "https://hooks.slack"
            + f".com/services/T{m.run(upper32, 8)}/B{m.run(upper32, 8)}/{m.run(ALNUM, 24)}"
        ),
        "stripe": lambda: (
            m.pick("sk", "rk") + "_" + m.pick("live", "test") + "_" + m.run(ALNUM, 24)
        ),
        "openai": lambda: m.pick(
            "s" + "k-" + m.run(ALNUM, 20) + "T3Blbk" + "FJ" + m.run(ALNUM, 20),
            "s" + "k-proj-" + m.run(URLSAFE, 74) + "T3Blbk" + "FJ" + m.run(URLSAFE, 74),
        ),
        "anthropic": lambda: "s" + "k-ant-" + "api03-" + m.run(URLSAFE, 93) + "AA",
        "google-key": lambda: "AI" + "za" + m.run(URLSAFE, 35),
        "google-oauth": lambda: m.pick(
            "ya" + "29." + m.run(URLSAFE, 80, 120), "GOC" + "SPX-" + m.run(URLSAFE, 28)
        ),
        "huggingface": lambda: "h" + "f_" + m.run(string.ascii_letters, 34),
        "npm": lambda: "np" + "m_" + m.run(ALNUM, 36),
        "pypi": lambda: "py" + "pi-AgEIcHlwaS5vcmc" + m.run(URLSAFE, 130, 160),
        "sendgrid": lambda: "S" + "G." + m.run(URLSAFE, 22) + "." + m.run(URLSAFE, 43),
        "twilio": lambda: "S" + "K" + m.run(HEX, 32),
        "telegram": lambda: m.run("123456789", 10) + ":" + "AA" + m.run(URLSAFE, 33),
        "discord": lambda: (
            m.pick("M", "N", "O")
            + m.run(ALNUM, 23)
            + "."
            + m.run(URLSAFE, 6)
            + "."
            + m.run(URLSAFE, 38)
        ),
        "jwt": lambda: (
            "ey"
            + "J"
            + m.run(ALNUM, 33)
            + ".ey"
            + "J"
            + m.run(URLSAFE, 40, 120)
            + "."
            + m.run(URLSAFE, 43)
        ),
    }


def _in_any_text(m: Maker, token: str) -> str:
    """A token that is recognised by its form stands anywhere."""
    inner = json.dumps({"step": 3, "value": token}, separators=(",", ":"))
    return m.pick(
        json.dumps({"action": "call", "arg": token, "n": 1}, separators=(",", ":")),
        json.dumps({"input": inner}, separators=(",", ":")),
        json.dumps({"a": json.dumps({"input": inner})}),
        f"I used {token} and it worked, thanks.",
        f"Can you check why {token} gives a 403?",
        f"Hier ist er: {token}.",
        f"export ACCESS={token}",
        f"client = Client('{token}', retries=2)",
        f"  value: {token}",
        f"https://api.example.test/v1/items?k={token}&page=2",
        f"2025-03-0{m.run('123456789', 1)} 10:22:01 ERROR 401 for {token} (attempt 2)",
        f"X-Custom: {token}",
        f'<div data-value="{token}"></div>',
        f"`{token}`",
        f"({token})",
    )


def _under_key(m: Maker, key: str, value: str) -> tuple[str, str]:
    """A line with the value under a field name, and how the value is spelled in it."""
    flat = json.dumps(
        {"user": "anna", key: value, "n": 2}, separators=(",", ":"), ensure_ascii=False
    )
    once = json.dumps({"input": flat}, separators=(",", ":"), ensure_ascii=False)
    twice = json.dumps({"data": once}, separators=(",", ":"), ensure_ascii=False)
    bare = value.replace("#", "x").replace("&", "y").replace("%", "z")
    upper = key.replace("-", "_").replace(" ", "_").upper()
    lines = [
        (flat, value),
        (once, value),
        (twice, value),
        (f"{key}: {bare}", bare),
        (f"  {key}: '{value}'", value),
        (f"{upper}={bare}", bare),
        (f'export {upper}="{value}"', value),
        (f'{key} = "{value}"', value),
        (f"const cfg = {{ user: 'anna', {key.replace('-', '_')}: '{value}' }};", value),
        (f"https://example.test/login?user=anna&{key}={bare}&x=1", bare),
        (f"2025-01-02 DEBUG login user=anna {key}={bare} ip=10.0.0.7", bare),
        (f'<input name="{key}" type="text" value="{value}">', value),
        (f"app.cfg['{key}'] = '{value}'", value),
    ]
    return m.rng.choice(lines)


def _fields(m: Maker) -> dict[str, Callable[[], tuple[str, str]]]:
    """Secrets that only the name beside them tells."""

    def key(names: str, value: Callable[[], str]) -> Callable[[], tuple[str, str]]:
        return lambda: _under_key(m, m.pick(*names.split()), value())

    def long() -> str:
        return m.pick(m.run(HEX, 32), m.run(ALNUM, 20, 40), m.run(URLSAFE, 24).strip("-_") + "x")

    def aws() -> str:
        return "w" + m.run(BASE64, 38) + "Z"

    return {
        "aws-secret": key("aws_secret_access_key secretAccessKey AWS_SECRET_ACCESS_KEY", aws),
        "api-key": key(
            "apiKey api_key api-key x-api-key openaiApiKey APIKEY braveSearchApiKey", long
        ),
        "token-field": key("accessToken refresh_token auth-token botToken token id_token", long),
        "client-secret": key("clientSecret client_secret secret tokenSecret app-secret", long),
        "private-key-field": key("privateKey encryption_key masterKey vaultKey signing-key", long),
        "credentials": key("credentials credential vaultPassword masterPassword", m.password),
        "password-en": key("password passwd pwd passphrase db_password userPassword", m.password),
        "password-de": key("passwort kennwort Passwort db_passwort", m.password),
        "password-fr": key("motdepasse mot_de_passe motDePasse", m.password),
        "password-es": key("contraseña contrasena clave_secreta", m.password),
        "password-prose": lambda: _password_prose(m),
    }


def _password_prose(m: Maker) -> tuple[str, str]:
    word = m.password().rstrip("!")
    line = m.pick(
        f"my password is {word}, can you log in for me?",
        f"The password is {word} and the user is anna.",
        f"Log in as anna with password {word} please",
        f'Use the password "{word}" for the shop.',
        f"Mein Passwort ist {word} und der Name anna",
        f"Mon mot de passe est {word}, merci.",
        f"Mi contraseña es {word}, gracias.",
        f"user: anna, password: {word}",
        f"Password for the test system: {word}",
        f"mysqldump --user anna --password {word} shop",
    )
    return line, word


def _structured(m: Maker) -> dict[str, Callable[[], tuple[str, str]]]:
    """Headers, connection strings, cookies and key blocks."""
    return {
        "bearer": lambda: _header(m, "Bearer ", m.run(URLSAFE, 24, 60)),
        "basic": lambda: _header(m, "Basic ", "dXNlcj" + m.run(BASE64, 18) + "=="),
        "azure-storage": lambda: _azure(m),
        "azure-sas": lambda: _sas(m),
        "database-url": lambda: _database(m),
        "ado": lambda: _ado(m),
        "cookie": lambda: _cookie(m),
        "url-login": lambda: _login(m),
        "pem": lambda: _pem(m, "\n"),
        "pem-escaped": lambda: _pem(m, "\\n"),
        "pem-cut": lambda: _cut(m),
        "pgp": lambda: _pgp(m),
    }


def _header(m: Maker, scheme: str, token: str) -> tuple[str, str]:
    value = scheme + token
    line = m.pick(
        f"Authorization: {value}",
        json.dumps({"headers": {"Authorization": value}}),
        json.dumps({"input": json.dumps({"headers": {"authorization": value}})}),
        f"curl -H 'Authorization: {value}' https://api.example.test/v1",
        f"headers = {{'Authorization': '{value}', 'Accept': '*/*'}}",
        f"> authorization: {value}",
    )
    return line, token


def _azure(m: Maker) -> tuple[str, str]:
    key = m.run(BASE64, 86) + "=="
    text = (
        f"DefaultEndpointsProtocol=https;AccountName=shop{m.run(string.digits, 3)};AccountKey={key}"
    )
    text += ";EndpointSuffix=core.windows.net"
    return m.pick(text, json.dumps({"conn": text}), f"AZURE_STORAGE={text}"), key


def _sas(m: Maker) -> tuple[str, str]:
    sig = m.run(ALNUM, 41) + "%3D"
    url = "https://shop.blob.core.windows.net/c/f.csv?sv=2022-11-02&sp=r&se=2026-01-01"
    return m.pick(f"{url}&sig={sig}", f'curl "{url}&sig={sig}"', f"see {url}&sig={sig} now"), sig


def _database(m: Maker) -> tuple[str, str]:
    scheme = m.pick("postgres", "postgresql", "mysql", "mongodb+srv", "redis", "amqp", "mariadb")
    word = m.run(ALNUM + "!$-_.", 8, 16)
    url = f"{scheme}://shop:{word}@db{m.run(string.digits, 1)}.example.test:5432/shop"
    line = m.pick(
        url,
        f"DATABASE_URL={url}",
        json.dumps({"url": url}),
        json.dumps({"input": json.dumps({"dsn": url})}),
        f"engine = create_engine('{url}')",
        f"I get a timeout with {url} since Monday.",
    )
    return line, word


def _ado(m: Maker) -> tuple[str, str]:
    word = m.run(ALNUM + "!*_", 8, 14)
    line = m.pick(
        f"Server=db.example.test;Database=shop;User Id=sa;Password={word};Encrypt=true;",
        f"Server=db;Initial Catalog=shop;uid=sa;Pwd={word};",
        f"jdbc:sqlserver://db.example.test:1433;databaseName=shop;user=sa;password={word};",
        json.dumps({"connection": f"Data Source=db;User ID=sa;Password={word};Pooling=no"}),
        f"jdbc:mysql://db.example.test/shop?user=root&password={word}&useSSL=false",
    )
    return line, word


def _cookie(m: Maker) -> tuple[str, str]:
    value = m.run(ALNUM, 26, 40)
    name = m.pick("sessionid", "PHPSESSID", "JSESSIONID", "connect.sid", "agentron_session", "sid")
    line = m.pick(
        f"Cookie: theme=dark; {name}={value}; lang=de",
        f"Set-Cookie: {name}={value}; Path=/; HttpOnly; Secure",
        json.dumps({"headers": {"Cookie": f"{name}={value}"}}),
        f"curl -b '{name}={value}' -H 'Cookie: {name}={value}' https://example.test",
    )
    return line, value


def _login(m: Maker) -> tuple[str, str]:
    word = m.run(ALNUM + "-_.", 8, 14)
    line = m.pick(
        f"git clone https://anna:{word}@git.example.test/shop.git",
        f"https_proxy=http://anna:{word}@proxy.example.test:3128",
        json.dumps({"url": f"https://anna:{word}@shop.example.test/admin"}),
        f"see ftp://anna:{word}@files.example.test/in",
    )
    return line, word


def _pem(m: Maker, newline: str) -> tuple[str, str]:
    kind = m.pick("RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY")
    body = newline.join(m.base64_lines(m.rng.randint(2, 6)))
    head, tail = "-" * 5 + f"BEGIN {kind}" + "-" * 5, "-" * 5 + f"END {kind}" + "-" * 5
    block = newline.join((head, body, tail))
    line = m.pick(f"Here it is:{newline}{block}", f'KEY="{block}"', json.dumps({"file": block}))
    if line.startswith("{"):
        body = json.dumps(body)[1:-1]
    return line, body


def _cut(m: Maker) -> tuple[str, str]:
    body = "\n".join(m.base64_lines(3))[: m.rng.randint(120, 190)]
    return "-" * 5 + "BEGIN PRIVATE KEY" + "-" * 5 + "\n" + body, body


def _pgp(m: Maker) -> tuple[str, str]:
    name = "PGP PRIVATE KEY " + "BLOCK"
    body = "\n".join(m.base64_lines(4)) + "\n=" + m.run(BASE64, 4)
    head, tail = "-" * 5 + f"BEGIN {name}" + "-" * 5, "-" * 5 + f"END {name}" + "-" * 5
    return f"{head}\nVersion: 2\n\n{body}\n{tail}\n", body


def planted(seed: int = 1) -> list[Planted]:
    """The secrets in their lines, every family in turn."""
    m = Maker(seed)
    makers: dict[str, Callable[[], tuple[str, str]]] = {}
    for family, make in _token_families(m).items():
        makers[family] = lambda make=make: _with_line(m, make())  # type: ignore[misc]
    makers |= _fields(m) | _structured(m)
    found: list[Planted] = []
    while len(found) < N_SECRETS:
        for family, build in makers.items():
            line, secret = build()
            found.append(Planted(line, secret, family))
    return found[:N_SECRETS]


def _with_line(m: Maker, token: str) -> tuple[str, str]:
    line = _in_any_text(m, token)
    # Of a webhook only the path is secret.
    return line, token.removeprefix("https://hooks.slack" + ".com/services/")


def is_hidden(item: Planted, redacted: str) -> bool:
    """Whether no run of six characters of the secret is left in the line."""
    # The placeholder may name the provider, as the token does.
    redacted = re.sub(r"\[REDACTED:[\w-]+\]", "", redacted)
    size = min(LEFT_OVER, len(item.secret))
    runs = (item.secret[i : i + size] for i in range(len(item.secret) - size + 1))
    return not any(run in redacted for run in runs)


def judge(finder: Finder, seed: int = 1) -> dict[str, Any]:
    """Recall, recall by family, false alarms in 1,000 harmless lines, and microseconds a line."""
    by_family: dict[str, list[bool]] = {}
    missed = []
    for item in planted(seed):
        hidden = is_hidden(item, finder.redact(item.line)[0])
        by_family.setdefault(item.family, []).append(hidden)
        if not hidden:
            missed.append(item.line)
    lines = harmless(seed)
    started = time.perf_counter()
    alarms = [line for line in lines if finder.redact(line)[1]]
    seconds = time.perf_counter() - started
    return {
        "recall": sum(map(sum, by_family.values())) / N_SECRETS,
        "by_family": {family: sum(hits) / len(hits) for family, hits in by_family.items()},
        "false_alarms_per_1000": 1000 * len(alarms) / len(lines),
        "microseconds_a_line": 1e6 * seconds / len(lines),
        "missed": missed,
        "alarms": alarms,
    }


def main() -> None:
    from ollama_trainer.secrets import SecretFinder

    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(json.dumps(judge(SecretFinder(), seed), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
