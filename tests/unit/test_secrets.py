"""SecretFinder: what is hidden, what is left alone, and that JSON stays JSON."""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_trainer.secrets import Secret, SecretFinder

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from harmless_lines import harmless
from secrets_corpus import judge, planted

FINDER = SecretFinder()
A36 = "aB3" * 12
HEX32 = "0a1b2c3d" * 4


def hidden(text: str) -> str:
    return FINDER.redact(text)[0]


def kinds(text: str) -> tuple[str, ...]:
    return FINDER.redact(text)[1]


# Each in two parts: whole, they would look like real ones to a scanner of repositories.
TOKENS = {
    "aws-access-key": ("AK", "IA" + "Q7" * 8),
    "github-token": ("gh", "p_" + A36),
    "gitlab-token": ("gl", "pat-" + A36[:20]),
    "slack-token": ("xo", "xb-" + "1234567890-" + A36[:24]),
    "anthropic-key": ("sk", "-ant-api03-" + A36 * 2),
    "openai-key": ("sk", "-" + A36[:32]),
    "google-key": ("AI", "za" + A36[:35]),
    "google-oauth": ("ya", "29." + A36),
    "huggingface-token": ("h", "f_" + A36[:30]),
    "npm-token": ("np", "m_" + A36),
    "pypi-token": ("py", "pi-" + A36 * 2),
    "sendgrid-key": ("S", "G." + A36[:16] + "." + A36[:32]),
    "twilio-key": ("S", "K" + HEX32),
    "stripe-key": ("rk", "_test_" + A36[:16]),
    "telegram-token": ("12345678:", "AA" + A36[:33]),
    "jwt": ("ey", "J" + A36 + ".ey" + "J" + A36 + "." + A36),
    "mailgun-key": ("k", "ey-" + HEX32),
}
# These have no length of their own, or a minimum in several parts.
OPEN_ENDED = {"anthropic-key", "google-oauth", "pypi-token", "jwt", "slack-token", "telegram-token"}
EXACT = ("aws-access-key", "google-key", "npm-token", "twilio-key", "mailgun-key")


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_in_any_surroundings(kind: str) -> None:
    token = "".join(TOKENS[kind])
    for before, after in (
        ("", ""),
        ("see ", " there"),
        ("x\n", "\ny"),
        ("ü", "é"),
        ("日本", "語。"),
        ("(", ")"),
        ('{"a":"', '"}'),
        (r'{"a":"{\"b\":\"', r'\"}"}'),
        (r'{"a":"line\n', r'\nnext"}'),
        ("https://h.test/?k=", "&n=1"),
        ("İ ", " İ"),
        ("k%3D", "%20"),
    ):
        text = before + token + after
        assert hidden(text) == f"{before}[REDACTED:{kind}]{after}"
        assert FINDER.find(text)[0].start == len(before)


@pytest.mark.parametrize("kind", TOKENS)
def test_a_token_inside_a_word_is_none(kind: str) -> None:
    token = "".join(TOKENS[kind])
    if kind not in ("telegram-token", "jwt"):  # the rest of a JWT is one, too
        assert kind not in kinds("q" + token)


@pytest.mark.parametrize("kind", sorted(TOKENS.keys() - OPEN_ENDED))
def test_a_token_one_character_short_is_none(kind: str) -> None:
    assert kinds("".join(TOKENS[kind])[:-1]) == ()


@pytest.mark.parametrize("kind", EXACT)
def test_a_token_one_character_long_is_none(kind: str) -> None:
    token = "".join(TOKENS[kind])
    assert kinds(token + token[-1]) == ()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('{"password":"x","apiKey":"y"}', ("x", "y")),
        (r'{"i":"{\"password\":\"a\\\"b\",\"n\":\"keep\"}"}', (r"a\\\"b",)),
        (r'{"i":"{\"j\":\"{\\\"apiKey\\\":\\\"zz\\\"}\"}"}', ("zz",)),
        (r'{"password":"ends with \\","n":"keep"}', (r"ends with \\",)),
        ("DB_PASSWORD=hunter\nNAME=x", ("hunter",)),
        ('export API_KEY="a b c"', ("a b c",)),
        ("password: hunter\nuser: x", ("hunter",)),
        ("db:\n  password: 'it''", ("it",)),
        ("<password>hunter</password>", ("hunter",)),
        ('<input name="password" type="text" value="hunter">', ("hunter",)),
        ("password: str = 'hunter'", ("hunter",)),
        ("app.cfg['clientSecret'] = 'abc'", ("abc",)),
        ("https://h.test/?user=a&api_key=abc123&x=1", ("abc123",)),
        ("my password is Sommer12, thanks", ("Sommer12",)),
        ('the password is "dragon" now', ("dragon",)),
        ("Mein Passwort lautet: Katze99", ("Katze99",)),
        ("Mon mot de passe est Chat1234.", ("Chat1234",)),
        ('"contraseña":"gato"', ("gato",)),
        ("login --password hunter", ("hunter",)),
        ("postgres://u:p4ss@db/x", ("p4ss",)),
        (r"https:\/\/u:p4ss@db\/x", ("p4ss",)),
        ("Server=db;User Id=sa;Password=abc!1;Encrypt=true", ("abc!1",)),
        ('{"name":"API_KEY","value":"abc"}', ("abc",)),
        ('{"credentialKey":"shop","value":"a b","save":true}', ("a b",)),
        ('{"credentials":{"username":"bob","word":"q"}}', ("q",)),
        ('{"extra":{"apiKey":"abc"},"vaultKey":"def"}', ("abc", "def")),
        ('{"tokenSecret":"a","accessToken":"b","botToken":"c"}', ("a", "b", "c")),
        ('{"selector":"#password","value":"hunter"}', ("hunter",)),
        ("fill('#password', 'hunter')", ("hunter",)),
        ("Authorization: Bearer abc123def456ghi789", ("abc123def456ghi789",)),
        ("Authorization: Basic dXNlcjpwYXNz", ("dXNlcjpwYXNz",)),
        ("Cookie: a=b; sessionid=abc123def; c=d", ("abc123def",)),
        ("curl -u anna:hunter1 https://h.test", ("hunter1",)),
        ("create user a identified by 'hunter'", ("hunter",)),
        (
            '{"passwords":["a",["b"],{"name":"n","value":"c"},null,"d"],"n":"e"}',
            ("a", "b", "c", "d"),
        ),
        ('{"credentials":{"a":["x"],"word":"q"}}', ("q",)),
        (r'{"i":"{\"passwords\":[\n  \"a\",\n  \"b\"\n]}"}', ("a", "b")),
        (
            '{"credentials":{"note":"{","name":"glpat-' + A36[:20] + '","w":"q"}}',
            ("{", "glpat-" + A36[:20], "q"),
        ),
    ],
)
def test_by_the_name_beside_it(text: str, secret: tuple[str, ...]) -> None:
    assert tuple(text[s.start : s.end] for s in FINDER.find(text)) == secret


@pytest.mark.parametrize(
    "value",
    [
        "",
        "null",
        "***",
        "<your-key>",
        "${VAR}",
        "$PASSWORD",
        "{{var}}",
        "string",
        "xxxx",
        "required",
        "your-api-key",
        "[REDACTED:password]",
        "process.env.X",
        "YOUR_API_KEY",
        "••••••",
    ],
)
def test_placeholders_stay(value: str) -> None:
    for name in ("password", "apiKey", "clientSecret", "accessToken"):
        for text in (f'{{"{name}":"{value}"}}', f"{name}={value}", f"{name}: {value}"):
            assert kinds(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        '{"max_tokens":512,"token_count":7,"tokenizer":"bpe-1a2b3c4d5e6f7g"}',
        "The secretary is away. The monkey has the key: banana1.",
        "the password is wrong",
        "Forgot your password? Reset your password.",
        "password = os.environ['X']; token = tokens[3]; secret = f(x)",
        "if (password === other) return; api_key != None",
        "credentials: 'include'",
        '{"apiKeyRef":"OPENAI_API_KEY","hasToken":false}',
        "bypass=north12 compass: north12 passed: 12345678a",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB anna@host",
        "git@github.com:a/b.git https://h.test:80/@anna ssh://git@h.test",
        "PWD=/home/anna",
        "input('Password: ')",
    ],
)
def test_harmless(text: str) -> None:
    same, found = FINDER.redact(text)
    assert same is text
    assert found == ()


@pytest.mark.parametrize("kind", ["", "RSA ", "OPENSSH ", "EC ", "ENCRYPTED "])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\\n", "\\\\n"])
def test_private_keys_go_whole(kind: str, newline: str) -> None:
    head, tail = f"-----BEGIN {kind}PRIVATE" + " KEY-----", f"-----END {kind}PRIVATE KEY-----"
    body = newline.join(("Ab1/" * 16,) * 3)
    for text in (f"{head}{newline}{body}{newline}{tail}", f"{head}{newline}{body}"):
        for before, after in (("", ""), ("key: ", ""), ('{"privateKey":"', '"}'), ("x\n", ' "y"')):
            redacted, found = FINDER.redact(before + text + after)
            assert "Ab1" not in redacted
            assert "PRIVATE" not in redacted
            assert redacted.startswith(before)
            assert redacted.endswith(after)
            assert len(found) == 1


def test_a_number_becomes_a_text() -> None:
    """JSON knows no bare placeholder."""
    assert hidden('{"password":123456,"n":1}') == '{"password":"[REDACTED:password]","n":1}'
    inner = json.dumps({"input": '{"password":123456}'})
    assert json.loads(json.loads(hidden(inner))["input"]) == {"password": "[REDACTED:password]"}


def nested(data: Any, levels: int, **how: Any) -> str:
    for _ in range(levels):
        data = {"input": json.dumps(data, **how)}
    return json.dumps(data, **how)


@pytest.mark.parametrize("key", ["secrets", "passwords", "credentials"])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_list_is_hidden_to_its_end(key: str, levels: int) -> None:
    secrets = [f"q{number}x" for number in range(2000)]
    text = nested({key: [*[None] * 400, *secrets], "n": "kept"}, levels)
    assert [text[s.start : s.end] for s in FINDER.find(text)] == secrets
    assert "kept" in hidden(text)


TOKEN = "".join(TOKENS["github-token"])


@pytest.mark.parametrize(
    "opening",
    [
        "[REDACTED: ",
        "[REDACTED:",
        "[REDACTED:password ",
        "[REDACTED:Password] [REDACTED:",
        "[REDACTED:x] ",
        "[REDACTED:x\n",
    ],
)
def test_nothing_hides_behind_half_a_placeholder(opening: str) -> None:
    for after in ("", "]", " x]"):
        redacted = hidden(opening + TOKEN + after)
        assert redacted.startswith(f"{opening}[REDACTED:")
        assert TOKEN[:12] not in redacted
        told = opening + "my password is Sommer12" + after
        assert "Sommer12" not in hidden(told)
    assert "Ab1Cd" not in hidden(f'{{"password":"{opening}Ab1Cd"}}')


def test_a_token_in_small_letters_is_no_kind() -> None:
    token = "".join(TOKENS["mailgun-key"])
    assert token not in hidden(f"[REDACTED:{token}]")


@pytest.mark.parametrize(
    ("data", "secret"),
    [
        ({"name": "password", "type": "string", "value": "s3cretPW99x"}, "s3cretPW99x"),
        ({"label": "Password", "required": True, "value": "hunter two"}, "hunter two"),
        ({"id": "api_key", "kind": "x", "value": "a"}, "a"),
        ({"name": "password", "note": "Don't } {", "tags": ["a"], "n": -1.5, "value": "a"}, "a"),
        ({"format": "password", "title": "x", "default": "hunter"}, "hunter"),
        ({"value": "hunter", "key": "password"}, "hunter"),
        ({"value": 'a "quoted" {one}', "hint": 'a } "b"', "name": "db_password", "z": 1}, None),
        ({"label": "PIN", "value": "hunter", "zone": "x", "type": "password"}, "hunter"),
        ({"name": "passwords", "type": "list", "value": ["a b"]}, "a b"),
    ],
)
@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_value_apart_from_its_name(
    data: dict[str, Any], secret: str | None, levels: int, indent: int | None
) -> None:
    others = {"value": "kept", "name": "user"}
    text = nested([others, data, others], levels, indent=indent)
    (found,) = FINDER.find(text)
    if secret is not None:
        assert text[found.start : found.end] == secret
    read = json.loads(hidden(text))
    for _ in range(levels):
        read = json.loads(read["input"])
    assert read[0] == read[2] == others
    changed = {key for key in data if read[1][key] != data[key]}
    assert changed == {"value" if "value" in data else "default"}


@pytest.mark.parametrize(
    "text",
    [
        '[{"name":"password","type":"string"},{"value":"x"}]',
        '[{"value":"x"},{"name":"password","type":"string"}]',
        '{"a":{"name":"password","type":"string"},"value":"x"}',
        '{"value":"x","a":{"name":"password"}}',
        '{"value":"x","a":["name","password"]}',
        '{"required":["user","password"],"type":"object","value":"x"}',
        json.dumps({"name": "password", "note": "n" * 500, "value": "x"}),
        json.dumps({"value": "x", "note": "n" * 500, "name": "password"}),
        '{"name":"token","type":"string","value":"an ordinary text"}',
        '{"name":"password","type":"string","value":""}',
        '{"name":"password","type":"string","value":"{{password}}"}',
        '{"value":"x","note":"it has a password"}',
    ],
)
def test_a_value_of_something_else(text: str) -> None:
    assert kinds(text) == ()


ABOUT_A_FIELD = {
    "$ref": "#/$defs/Password",
    "anyOf": [{"type": "string", "pattern": "^a"}, {"type": "null"}],
    "description": "The one for the shop.",
    "errorMessage": "Eight at least",
    "format": "password",
    "help": "Ask Anna",
    "items": {"type": "string", "pattern": "^b"},
    "minLength": 8,
    "pattern": "^.{8,}$",
    "properties": {"user": {"type": "string", "default": "anna"}},
    "required": ["user"],
    "title": "Password",
    "type": "string",
    "writeOnly": True,
    "x-order": "3rd",
}


@pytest.mark.parametrize("name", ["password", "token", "apiKey", "credentials", "clientSecret"])
@pytest.mark.parametrize("levels", [0, 1])
def test_schemas_stay(name: str, levels: int) -> None:
    for about in (
        ABOUT_A_FIELD,
        dict(reversed(ABOUT_A_FIELD.items())),
        {"type": "string", "pattern": "^.{8,}$"},
    ):
        schema = {"properties": {name: about, "n": {"type": "string"}}, "required": [name]}
        text = nested(schema, levels)
        assert hidden(text) == text


@pytest.mark.parametrize("name", ["password", "token", "apiKey", "credentials", "clientSecret"])
@pytest.mark.parametrize("levels", [0, 1])
def test_values_in_schemas_go(name: str, levels: int) -> None:
    value = "q7Xy82mPw31z"
    for about in (
        {"default": value, "type": "string"},
        {"pattern": "^a", "const": value},
        {"enum": ["", value]},
        {"type": "string", "examples": [value]},
        {"anyOf": [{"type": "null"}, {"type": "string", "example": value}]},
    ):
        text = nested({"properties": {name: about}}, levels)
        (found,) = FINDER.find(text)
        assert text[found.start : found.end] == value


def test_each_secret_counts() -> None:
    other = "".join(TOKENS["slack-token"])
    text = f'{TOKEN} {other} {TOKEN} {{"password":123456}} {other}'
    assert kinds(text) == (
        "github-token",
        "slack-token",
        "github-token",
        "password",
        "slack-token",
    )
    assert len(kinds('{"passwords":["a","b","c"]}')) == 3


@given(st.integers(1, 200), st.integers(0, 199), st.integers(0, 199))
def test_as_many_kinds_as_placeholders(seed: int, first: int, second: int) -> None:
    items = planted(seed)
    redacted, found = FINDER.redact(f"{items[first].line}\n{items[second].line}")
    assert re.findall(r"\[REDACTED:([\w-]+)\]", redacted) == list(found)


LINES = [*(item.line for item in planted(1)), *harmless(1)]
PARTS = st.one_of(
    st.sampled_from(LINES),
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["\n", "a", "İ", "Σ", "K", "ẞ", " -b ", "-u ", "bearer ", "pass", "S", "K", "@", "\n\n"]
        ),
        max_size=8,
    ).map("".join),
    st.integers((1 << 16) - 40, (1 << 16) + 8).map(lambda length: "x" * length),
)


@given(PARTS, PARTS, st.booleans())
def test_what_is_not_suspect_holds_nothing(first: str, second: str, emails: bool) -> None:
    finder = SecretFinder(emails=True) if emails else FINDER
    text = f"{first}\n\n{second}"
    if not finder.suspects(text):
        assert finder.find(text) == finder.find(first) == finder.find(second) == []


def test_suspects() -> None:
    assert not FINDER.suspects("")
    assert not FINDER.suspects("the quick brown fox\n\nasks for skill: SNAKE")
    for text in ("a@b", "TASK", "Password", "ü Password", "x" * (1 << 17) + "TOKEN"):
        assert FINDER.suspects(text)
    assert not FINDER.suspects("x" * (1 << 17))


def test_find_gives_offsets() -> None:
    assert FINDER.find('ü {"pwd":"ß"}') == [Secret(kind="password", start=10, end=11)]


def test_emails_only_if_asked() -> None:
    text = "write to anna.b+c@mail.example.test, or git@github.com:a/b.git"
    assert kinds(text) == ()
    asked = SecretFinder(emails=True).redact(text)
    assert asked == ("write to [REDACTED:email], or git@github.com:a/b.git", ("email",))


def test_a_secret_at_the_border_of_two_pieces() -> None:
    token = "".join(TOKENS["github-token"])
    for shift in range(0, 45, 3):
        before = "x " * ((1 << 15) - shift)
        assert hidden(before + token + " y") == before + "[REDACTED:github-token] y"


NAMES = st.sampled_from(["note", "name", "items", "count", "key", "url", "title"])
SECRET_NAMES = st.sampled_from(["password", "apiKey", "clientSecret", "db_password", "accessToken"])
TEXTS = st.text(
    st.sampled_from(string.ascii_letters + string.digits + "\"'\\\n\t =:;,{}[]&üß😀/@"), max_size=30
)


@given(st.dictionaries(NAMES, TEXTS), SECRET_NAMES, TEXTS, st.integers(0, 3), st.booleans())
def test_json_stays_json(
    harmless: dict[str, str], name: str, secret: str, levels: int, ascii_only: bool
) -> None:
    """The secret is gone or was a placeholder, and all around it is as it was."""
    secret = "q7" + secret + "w8"
    data: Any = {**harmless, name: secret, "last": "kept"}
    for _ in range(levels):
        data = {"inner": json.dumps(data, ensure_ascii=ascii_only), "after": 1}
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=ascii_only)
    found = json.loads(hidden(text))
    for _ in range(levels):
        assert found["after"] == 1
        found = json.loads(found["inner"])
    assert "[REDACTED" in found[name]
    assert "q7" not in found[name]
    assert found["last"] == "kept"
    assert found.keys() == {*harmless, name, "last"}


@given(
    st.lists(
        st.one_of(
            TEXTS,
            st.sampled_from(
                [
                    "password",
                    "token",
                    "secret",
                    "=",
                    ": ",
                    '"',
                    "\\",
                    "my ",
                    " is ",
                    "api_key",
                    "-----BEGIN PRIVATE KEY-----",
                    "://u:",
                    "@",
                    "Bearer ",
                    "cookie: ",
                    "eyJ",
                ]
            ),
            st.sampled_from(["".join(parts) for parts in TOKENS.values()]),
        ),
        max_size=12,
    )
)
def test_redacting_twice_changes_nothing_more(parts: list[str]) -> None:
    once = hidden("".join(parts))
    assert hidden(once) == once


@given(st.integers(1, 200))
def test_redacting_planted_secrets_twice(seed: int) -> None:
    for item in planted(seed)[:45]:
        once = hidden(item.line)
        assert hidden(once) == once


@pytest.mark.parametrize("seed", [1, 2, 3, 7, 8, 9])
def test_the_planted_corpus(seed: int) -> None:
    result = judge(FINDER, seed)
    assert result["recall"] >= 0.95, result["missed"]
    assert result["false_alarms_per_1000"] <= 1, result["alarms"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part",
    [
        "a",
        "password",
        "eyJ",
        "-----BEGIN",
        "://",
        '"',
        "password is ",
        "\\",
        "@",
        "a@",
        "key",
        "token=",
        "-----BEGIN PRIVATE KEY-----\n",
        'secret:"',
        'password:\\"',
        "://a:",
        "sk-",
        "cookie: a=b; ",
        "SK",
        '"credentials":[',
        "discord M",
        ".eyJaaaaaaaaaaaa",
        '"credentials":["q",',
        '"password":{"default":',
        '"secrets":{"a":"b","c":{',
        '"#{\\"secret\\":[x",',
        '"secret":["#{\\"secret\\":[x",',
        "\"#{'secret':[`',`x\",",
        '"type":"\\"secret\\":[x", ',
        '"name":"password","a":"b",',
        '"value":"password",',
        '"value":"x","name":"password",',
        '"value":"x","name":"password"},{',
        "[REDACTED:password",
    ],
)
def test_any_long_text_is_read_in_linear_time(part: str) -> None:
    """A search that grows with the square would need minutes."""
    size = 2_000_000 if part in ("a", '"', "\\", "://", "eyJ") else 300_000
    finder = SecretFinder(emails=True)
    finder.redact(part * (size // len(part)))
    for start in ('"secrets":[', '{"secrets":{"'):
        finder.redact(start + part * (100_000 // len(part)))
