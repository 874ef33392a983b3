"""Harmless lines that look a little like secrets: for the judge in secrets_corpus.py.

Each template is filled at random: `{hex40}`, `{word}` and the like are replaced, anew each time.
"""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Callable

N_HARMLESS = 2000
WORDS_TEXT = """\
garden river window basket planet silver yellow market kitchen letter number engine summer
winter bottle button carpet doctor forest guitar hammer island jacket ladder mirror needle
orange pencil rabbit saddle tunnel violin wallet zipper bridge castle desert finger helmet
"""
WORDS = WORDS_TEXT.split()
NAMES_TEXT = """\
Anna Bernd Chloe Diego Elif Farid Greta Hugo Ines Jonas Kaito Lena Marco Nadia
"""
NAMES = NAMES_TEXT.split()
ALNUM = string.ascii_letters + string.digits

PROSE = """\
The secret of a good {word} is patience, and {n2} minutes in the {word}.
It is no secret that {name} prefers the {word} to the {word}.
{name} works as a secretary in the {word} office since {year}.
The key to the {word} lies under the {word}, next to the {word}.
{name} forgot the password again, so we reset it on {date}.
The password is wrong, says the page, although {name} typed it {n1} times.
My password is not working since {date}, what can I do about the {word}?
The password is too short: it needs at least {n2} characters.
The password is case sensitive and must contain a digit and a {word}.
Forgot your password? Click "Reset password" below the {word}.
To reset your password, open Settings > Security > Password and choose Change ({n1} of {n2}).
To change the password: open the {word}, choose Account, then type the new one twice.
Passwords should never be written on a {word}; use a password manager such as {word}.
Your token has expired. Please log in again to the {word}.
Each token is a piece of a word; "{word}" takes {n1} tokens and "{word}" takes {n1}.
Token: a unit of text that a model reads, about {n1} characters of a {word}.
The model counts {n4} tokens in the {word}, so max tokens must be at least {n4}.
As a token of thanks {name} got a {word} and {n1} tickets.
Secret: the name of a hidden {word} in chapter {n1}.
{name} plays the keyboard, {name} looks after the monkey, and the turkey is in the oven.
Das Passwort ist falsch, bitte versuchen Sie es in {n2} Minuten noch einmal, {name}.
Passwort vergessen? Klicken Sie auf den Link unter dem {word}.
Das Passwort: mindestens {n2} Zeichen, davon eine Ziffer.
Ihr Kennwort läuft in {n2} Tagen ab, {name}.
Der Schlüssel liegt bei {name} in der Küche, Zimmer {n3}.
Le mot de passe est incorrect, il reste {n1} essais.
Mot de passe oublié ? Écrivez à {name} avant le {date}.
Le secret de {name} : une {word} et {n2} grammes de beurre.
La contraseña es incorrecta, quedan {n1} intentos para {name}.
¿Olvidó su contraseña? Llame al {phone} y pregunte por {name}.
La clave es la paciencia, dice {name} en la página {n3}.
A chave do sucesso é o trabalho, diz {name} ({year}).
パスワードを忘れた場合は、{n1}番のボタンを押してください。
密码错误，请在{n2}分钟后重试。
Пароль неверный, осталось попыток: {n1}.
The parole board meets {name} on {date}; he hopes for parole: his second after {n2} years.
Basic auth is simple; bearer tokens are better, says {name} on page {n3}.
The bearer of this {word} may enter the {word} until {date}.
Basic information about the {word} is on page {n3}.
She baked a cookie: {n3} g of flour, {n1} eggs and a {word}.
This site uses cookies. Accept all cookies or open the cookie settings, {name}.
Please call {name} at {phone} about order {order} of {date}.
Order {order} was shipped on {date} with parcel {parcel}.
IBAN {iban}, in the name of {name}, due on {date}.
The credentials of {name} as a {word} expert are beyond doubt.
{name} presented her credentials to the president on {date}.
API keys are made under Settings > API keys; each is shown once, says the {word} page.
You need an API key: get one on the {word} page, then put it in the environment.
Where do I find my API key? I looked in the {word} and the {word}.
The API key is invalid or has expired, so I tried the {word} again at {time}.
Never share your secret key, private key or password with {name}.
The private key stays on your {word}; only the public key leaves it.
Access token lifetime: {n4} seconds, refresh token lifetime: {n2} days.
With two-factor authentication the password alone is not enough for the {word}.
Chapter {n2}. Password managers: how {name} keeps {n3} of them apart.
Use a passphrase of {n1} random words, as {name} does.
What does the error "invalid token" at position {n3} of {word}.json mean?
Enter password for {name}:
The password field is empty, and the token field shows {n1} dots.
Is the password stored as a hash in the {word} table? Yes: with {n2} rounds.
Password: required. User name: required. Age: optional, {n2} or more.
Password: (not shown), last changed on {date}
Your secret question: what was the name of your first {word}?
{name} said: the password is on the note under the {word}.
The password is stored in the vault, so ask {name} for it.
The password for the {word} is the same as before, says {name}.
Our secret ingredient is {word}-flavoured salt, {n2} grams of it.
The token ring of {year} ran at {n2} Mbit/s in {name}'s office.
Risk-{word}-{n3} and task-{word}-{n4} were closed by {name} on {date}.
Send the form to {lower}@example.test or call {phone}, says {name}.
The new {word} costs {n2}.99 and weighs {n3} g, {name} found.
Die {word} kostet {n2},50 € und wiegt {n3} g, sagt {name}.
I clicked the {word} button {n1} times, then the page showed [object Object].
"""

CODE = """\
const password = req.body.password; // {word} {n3}
const {{ password, token }} = await form.read{Word}();
password = getpass.getpass("{Word} password: ")
password = os.environ["{UPPER}_PASSWORD"]
api_key = os.environ.get("{UPPER}_API_KEY")
api_key = os.getenv("{UPPER}_API_KEY", "")
apiKey: process.env.{UPPER}_API_KEY,
const apiKey = process.env["{UPPER}_KEY"] ?? "";
apiKey: config.{word}.apiKey,
token: response.data.{word}.token,
self.token = token  # {word}
self._{word}_password = None
this.{word}Token = this.lexer.nextToken({n1});
let token = tokens[{n2}].{word};
token = next(iter({word}_tokens))
def login(user: str, password: str, token: str | None = None) -> {Word}:
function {word}(password: string, secret?: string): boolean {{
interface {Word} {{ apiKey: string; accessToken?: string; expires: number }}
password: z.string().min({n2}).max({n3}),
password: {{ type: String, required: true, minlength: {n2} }},
  password: Optional[str] = Field(default=None, max_length={n3})
if (password !== confirm{Word}) return "Passwords do not match";
if (!token) throw new Error("{word} token missing");
secret = client.get_secret("{word}-{n3}")
credentials: "include", // {word}
fetch("/api/{word}/{n3}", {{ credentials: "same-origin", method: "POST" }})
credentials = service_account.Credentials.from_{word}(path)
headers = {{"Authorization": f"Bearer {{token}}", "X-{Word}": "{n3}"}}
Authorization: `Bearer ${{config.apiKey}}`, // {word}
"Authorization": "Bearer <your-token>", "{word}": {n1}
curl -H "Authorization: Bearer $TOKEN" https://{word}.example.test/v{n1}
curl -u "$USER:$PASSWORD" https://{word}.example.test/{n3}
export {UPPER}_API_KEY=your-api-key-here
{UPPER}_SECRET=<your-secret>
{UPPER}_TOKEN=${{{UPPER}_TOKEN}}
{UPPER}_PASSWORD=changeme{n0}
{UPPER}_PASSWORD=
DB_PASSWORD={{{{ .Values.{word}.password }}}}
password: "{{{{ vault_{word}_password }}}}"
password: ${{{{ secrets.{UPPER}_PASSWORD }}}}
secretName: {word}-tls-{n2}
secretKeyRef: {{ name: {word}-{n1}, key: password }}
passwordSecretRef: {word}-db-{n2}
DATABASE_URL=postgres://user:${{DB_PASSWORD}}@{word}:5432/db{n1}
url = f"postgres://{{user}}:{{password}}@{{host}}/{word}{n1}"
git clone git@github.com:{lower}/{word}-{n2}.git
git clone https://github.com/{lower}/{word}-{n2}
ssh://git@{word}.example.test:22/{lower}/{word}.git
see https://{word}.example.test/@{lower}/posts:{n4} for more
https://{word}.example.test:8443/{n3}?next=/login&mail={lower}@example.test
https://{word}.example.test/reset-password?step={n1}&lang=de
https://{word}.example.test/oauth?response_type=token&scope=read&state={word}
from {word}.tokenizer import Tokenizer  # {n2}
tokenizer = AutoTokenizer.from_pretrained("{word}/{word}-{n1}b")
out = model.generate(max_new_tokens={n3}, pad_token_id={n4})
n_tokens = sum(len(t.tokens) for t in {word})  # {n3}
hf_hub_download("{word}/{word}-model-{n1}b", "{word}_config.json")
npm_config_cache=/tmp/{word}-{n3} npm run build:{word}
import sklearn, sk_{word}; from sk-{word} import x  # {n3}
.token.{word} {{ color: #{hex6}; padding: {n1}px }}
.password-{word}::placeholder {{ color: rgba({n2},{n2},{n2},.5) }}
#{word} > .key {{ background: url(data:image/png;base64,{b64_60}) }}
!function(e,t){{var n=e.key,r=t.token;return n(r,{n2}),e.password=t.password}}({word},{{}});
var a=b.token,c=d.secret;if(a===c)e.key="{word}";f(a,"{n3}")
assert response.json()["token_type"] == "bearer"  # {word} {n3}
grant_type=refresh_token&client_id={word}-{n3}&scope=read
primary key ({word}_id), foreign key (key_{n1}) references {word}(id)
CREATE USER {word} IDENTIFIED BY :password; -- {n3}
<input type="password" name="password" id="{word}" placeholder="Enter your password">
<input type="password" name="pwd{n1}" value="" autocomplete="new-password">
<label for="password">Password</label><a href="/{word}/{n3}">Forgot password?</a>
<meta name="csrf-param" content="{word}_token">
<button class="btn token-{word}" data-key="{word}{n2}">Reset password</button>
<td>password</td><td>string</td><td>The {word} password, {n2} to {n3} characters</td>
- [x] fix({word}): token refresh after {n2} minutes (#{n4})
feat(auth): password reset by mail, closes #{n4}, {hex7}
--password-file=/run/secrets/{word}-{n1}
--token-limit={n4} --key {word} --api-key-env {UPPER}_KEY
mysql -u {word} -p --host {word}{n1}.example.test
C:\\Users\\{name}\\Documents\\passwords\\{word}-{n2}.kdbx
/home/{lower}/.config/secrets/{word}/token_{n2}.json
ls /var/run/secrets/kubernetes.io/serviceaccount/token # {word} {n1}
key: {word}-{n3}
key = "{word}_{word}_{n3}"
sort(key=lambda {word}: {word}[{n1}])
const secretSanta = pick(["{name}", "{name}"]), monkey = {n2};
eos_token: "</s>", bos_token: "<s>", pad_token: "<pad_{n1}>"
<|im_start|>user {word} {word}<|im_end|> pad_token="<|endoftext|>" {n2}
"""

DATA = """\
id={uuid} status=ok duration={n3}ms
{date}T{time}Z INFO request {uuid} done in {n3} ms for {word}
{date} {time} WARN token refresh failed for user {n4}, retry in {n2}s
{date} {time} INFO password changed user_id={n4} ip=10.{n2}.{n1}.{n2}
level=info msg="token validated" user={n4} token=valid key={word}
commit {hex40} by {name} on {date}
index {hex7}..{hex7} 100644 --- a/{word}.py
sha256:{hex64}  {word}-{n1}.{n2}.tar.gz
{hex64}  ./{word}/{word}.bin
{hex32} *{word}-{n2}.iso
ETag: "{hex32}", Content-MD5: {b64_22}==
"integrity": "sha512-{b64_86}==",
resolved "https://registry.example.test/{word}/-/{word}-{n1}.{n2}.{n1}.tgz#{hex40}"
    --hash=sha256:{hex64} \\
"resolution": {{"integrity": "sha512-{b64_86}=="}}, "engines": {{"node": ">={n2}"}}
<img src="data:image/png;base64,iVBORw0KGgo{b64_300}">
data:font/woff2;base64,{b64_300}
ssh-rsa AAAAB3NzaC1yc2E{b64_300} {lower}@{word}
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{b64_43} {lower}@{word}
-----BEGIN CERTIFICATE----- MII{b64_300} -----END CERTIFICATE-----
-----BEGIN PUBLIC KEY----- MIIBIjANBg{b64_60} -----END PUBLIC KEY-----
SHA256:{b64_43} {lower}@{word} (ED25519)
{{"executionId":"{uuid}","label":"good","tokens":{n4}}}
{{"max_tokens":{n4},"temperature":0.{n1},"stop":["{word}"]}}
{{"usage":{{"prompt_tokens":{n3},"completion_tokens":{n2},"total_tokens":{n4}}}}}
{{"password":"","token":null,"apiKey":"***","name":"{word}{n2}"}}
{{"password":"[REDACTED:password]","user":"{lower}{n2}"}}
{{"password":"********","user":"{lower}{n3}"}}
{{"apiKey":"<your-key>","model":"{word}:{n1}b"}}
{{"apiKey":"YOUR_API_KEY","endpoint":"https://{word}.example.test"}}
{{"apiKey":"xxxxxxxxxxxxxxxx","model":"{word}{n3}"}}
{{"apiKeyRef":"{UPPER}_API_KEY","type":"{word}","n":{n3}}}
{{"apiKeySet":true,"hasToken":false,"vaultLocked":true,"id":{n4}}}
{{"authType":"password","host":"{word}.example.test","port":{n4}}}
{{"type":"object","properties":{{"password":{{"type":"string","minLength":{n2}}}}}}}
{{"password":{{"type":"string","description":"The password of the {word}"}},"n":{n3}}}
{{"required":["user","password","token"],"title":"{Word} {n2}"}}
{{"token":"{word}","logprob":-{n1}.{n3}}}
{{"token":"{Word}","id":{n4}}},{{"token":" the","id":{n3}}}
{{"eos_token":"<|endoftext|>","bos_token":null,"vocab":{n4}}}
{{"key":"{word}","value":"{name} {word}"}}
{{"key":"{word}_{n2}","secret":false,"private":true}}
{{"nextPageToken":null,"items":[{n1},{n2},{n3}]}}
{{"token_type":"Bearer","expires_in":{n4},"scope":"{word}"}}
{{"passwordChangedAt":"{date}T{time}Z","passwordAge":{n2}}}
{{"passwordPolicy":"strong","passwordMinLength":{n2},"word":"{word}"}}
{{"input":"{{\\"password\\":\\"\\",\\"apiKey\\":null,\\"n\\":{n3}}}"}}
{{"input":"{{\\"token\\":\\"{word}\\",\\"maxTokens\\":{n4}}}"}}
{{"label":"Password","placeholder":"Enter your password","id":"{word}-{n2}"}}
{{"role":"textbox","name":"Password","value":"","ref":"e{n3}"}}
{{"pageSnapshot":"- textbox \\"Password\\" [ref=e{n2}]\\n- button \\"{Word}\\""}}
{{"action":"fill","field":"password","hint":"ask {name} for the {word}"}}
- textbox "Password" [ref=e{n2}] - button "Sign in" - link "{Word}"
- text: Forgot password? - link "Reset it" [ref=e{n3}]: /url: /{word}
Cookie: theme=dark; lang=en; consent={date}
Set-Cookie: {word}={n1}; Path=/; Max-Age={n4}
WWW-Authenticate: Basic realm="{word} {n3}"
Authorization: Bearer <token> ({word} {n2})
Authorization: Basic <base64 of user:password>, see page {n3}
Access-Control-Allow-Headers: Authorization, X-Api-Key, X-{Word}
x-api-key: string (header), the key of the {word}, {n2} characters
X-Request-Id: {uuid}
GET /{word}/{n4}?page={n1}&key={word} HTTP/1.1 200 {n3}
+49 {n3} {n4}{n2} {name}
{phone}; {phone}; {iban}
{iban} {date} {n3},{n2} EUR {name}
{n4},{name},{date},{n2}.{n2},{uuid}
{parcel} {order} {hex7} {n4}
| password | {word} | {n3} | the password of the user |
| `apiKey` | string | yes | key of the {word}, from the {word} page |
user:{word} group:{word} mode:0{n3}
[object Object] {word} {n4} undefined null NaN
SKU SK{n4}{n4}-{n2} and AC{n4}{n4}, {word}
{n10}:{word} {n10}:{n2}
v{n1}.{n2}.{n1}-{word}.{hex7} built {date}T{time}Z
urn:uuid:{uuid} urn:isbn:978{n10}
eyJ is how base64 of a JSON object starts, says {name} on page {n3}
arn:aws:iam::{n4}{n4}{n4}:role/{word}-{n2}
s3://{word}-{n3}/{date}/part-{n4}-{uuid}.parquet
npm ERR! code E{n3} npm ERR! missing: {word}@{n1}.{n2}.{n1}
vault_{word}: locked={n1} since {date}; vault status: ok
"vault":"{word} notes","obsidian_vault":"/home/{lower}/{word}"
Secret Manager, {Word} Vault and Key Service compared ({year}), page {n3}
"""


def _fillers(rng: random.Random) -> dict[str, Callable[[], str]]:
    def run(alphabet: str, length: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(length))

    def number(digits: int) -> str:
        return str(rng.randint(10 ** (digits - 1), 10**digits - 1))

    found: dict[str, Callable[[], str]] = {
        "word": lambda: rng.choice(WORDS),
        "Word": lambda: rng.choice(WORDS).title(),
        "UPPER": lambda: rng.choice(WORDS).upper(),
        "name": lambda: rng.choice(NAMES),
        "lower": lambda: rng.choice(NAMES).lower(),
        "n0": lambda: "",
        "year": lambda: str(rng.randint(1970, 2030)),
        "date": lambda: f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        "time": lambda: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}",
        "uuid": lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "phone": lambda: f"+{rng.randint(1, 99)} {number(3)} {number(4)}{number(3)}",
        "order": lambda: f"{number(3)}-{number(7)}-{number(7)}",
        "parcel": lambda: f"JJD{number(15)}",
        "iban": lambda: (
            f"DE{number(2)} {number(4)} {number(4)} {number(4)} {number(4)} {number(2)}"
        ),
    }
    for digits in (1, 2, 3, 4, 10):
        found[f"n{digits}"] = lambda digits=digits: number(digits)  # type: ignore[misc]
    for length in (6, 7, 32, 40, 64):
        found[f"hex{length}"] = lambda length=length: run("0123456789abcdef", length)  # type: ignore[misc]
    for length in (22, 43, 60, 86, 300):
        found[f"b64_{length}"] = lambda length=length: run(ALNUM + "+/", length)  # type: ignore[misc]
    return found


def harmless(seed: int = 1) -> list[str]:
    """2,000 different lines that hold no secret."""
    rng = random.Random(seed)
    fillers = _fillers(rng)
    plain = PROSE.splitlines()
    # In code and data a doubled brace is one, as in str.format().
    braced = (CODE + DATA).splitlines()
    templates = [(line, False) for line in plain] + [(line, True) for line in braced]
    lines: dict[str, None] = {}
    for _ in range(100):
        rng.shuffle(templates)
        for template, doubled in templates:
            lines[_fill(template, fillers, doubled)] = None
            if len(lines) == N_HARMLESS:
                return list(lines)
    raise AssertionError("too few templates")


def _fill(template: str, fillers: dict[str, Callable[[], str]], doubled: bool) -> str:
    def put(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0] if doubled else found[0]
        return fillers[found[1]]() if found[1] in fillers else found[0]

    return re.sub(r"\{\{|\}\}|\{(\w+)\}", put, template)
