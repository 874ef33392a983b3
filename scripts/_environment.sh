# Sourced by the scripts beside it: makes .venv from the lock file, once for each version of it.
#   prepare       everything: server, training, tests
# Leaves $root (the repository) and $python (the environment's interpreter).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python="$root/.venv/bin/python"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3.14 python3 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 to 3.14 is needed and was not found. Install it, or set PYTHON to it."
}

prepare() {
    local stamp="$root/.venv/.installed" wanted base
    base=$(find_python) || exit 1
    wanted=$(cat "$root"/requirements/*.txt "$root/pyproject.toml" | sha256sum)
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        die "A C/C++ compiler is needed to build llama.cpp. On Debian: apt-get install g++ cmake."
    rm -f "$stamp"
    if [ ! -x "$python" ]; then
        say "making .venv with $base"
        "$base" -m venv "$root/.venv" || die "$base cannot make a virtual environment."
    fi
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null ||
        die ".venv has no pip. Remove the folder .venv and start again."
    say "installing from requirements/ (6 GB; llama.cpp is compiled: 10 minutes the first time)"
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r "$root/requirements/uv.txt" || die "uv could not be installed."
    # The lock file is whole, so nothing is resolved: what it leaves out stays out.
    "$python" -m uv pip install --python "$python" --require-hashes --no-deps \
        -r "$root/requirements/all.txt" || die "The packages could not be installed."
    "$python" -m uv pip install --quiet --python "$python" --no-deps --no-build-isolation \
        -e "$root" || die "ollama-trainer itself could not be installed."
    # Its package imports it before it is run, of which Python warns.
    "$python" -W ignore::RuntimeWarning -m ollama_trainer.bases.converter >/dev/null || die "llama.cpp's converter could not be installed."
    printf '%s' "$wanted" >"$stamp"
    say "installed"
}
