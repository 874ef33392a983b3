"""Each setting is declared once; flags go before environment, file and default."""

import argparse
import os
from pathlib import Path

import pytest

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.records import FidelityOptions, TrainingOptions
from ollama_trainer.settings import (
    Settings,
    add_flags,
    flag_name,
    given_flags,
    load_settings,
    unknown_variables,
    variable_name,
)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("OLLAMA"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_names_that_users_rely_on() -> None:
    fixed = {
        "host": "OLLAMA_TRAINER_HOST",
        "port": "OLLAMA_TRAINER_PORT",
        "data_dir": "OLLAMA_TRAINER_DATA_DIR",
        "base": "OLLAMA_TRAINER_BASE",
        "publisher": "OLLAMA_TRAINER_PUBLISHER",
        "backend": "OLLAMA_TRAINER_BACKEND",
        "quantization": "OLLAMA_TRAINER_QUANTIZATION",
        "dataset_roots": "OLLAMA_TRAINER_DATASET_ROOTS",
        "ollama_host": "OLLAMA_HOST",
        "steps": "OLLAMA_TRAINER_STEPS",
    }
    assert {name: variable_name(name) for name in fixed} == fixed


def test_the_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8765)
    assert (settings.base, settings.publisher) == ("", "ollama")
    assert (settings.backend, settings.quantization) == ("unsloth", "same")
    assert (settings.dataset_roots, settings.name_prefix) == ((), "tuned-")
    assert settings.ollama_host == "127.0.0.1:11434"
    assert settings.training == TrainingOptions()
    assert settings.fidelity == FidelityOptions()
    assert (settings.replay, settings.rounding) == ("auto", "compensated")


def test_flags_go_before_environment_before_file_before_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text('base = "file"\nseed = 4\nport = 1\nrank = 8\n')
    monkeypatch.setenv("OLLAMA_TRAINER_SEED", "5")
    monkeypatch.setenv("OLLAMA_TRAINER_PORT", "2")
    settings = load_settings({"port": "3"}, file)
    assert (settings.port, settings.seed, settings.base, settings.rank) == (3, 5, "file", 8)
    assert settings.alpha == TrainingOptions().alpha


def test_the_file_may_be_named_by_a_variable_or_lie_in_its_usual_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = tmp_path / "config/ollama-trainer/config.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text('base = "usual"\n')
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert load_settings().base == "usual"
    named = tmp_path / "named.toml"
    named.write_text('base = "named"\n')
    monkeypatch.setenv("OLLAMA_TRAINER_CONFIG", str(named))
    assert load_settings().base == "named"


def test_path_lists_are_split_as_the_platform_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    roots = (tmp_path / "a", tmp_path / "b")
    monkeypatch.setenv("OLLAMA_TRAINER_DATASET_ROOTS", os.pathsep.join(map(str, roots)))
    assert load_settings().dataset_roots == roots
    file = tmp_path / "x.toml"
    file.write_text(f"dataset_roots = ['{roots[0]}']\nallowed_hosts = 'a, b'\n")
    monkeypatch.delenv("OLLAMA_TRAINER_DATASET_ROOTS")
    settings = load_settings(config=file)
    assert (settings.dataset_roots, settings.allowed_hosts) == (roots[:1], ("a", "b"))


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("port", "70000", "8765"),
        ("port", "http", "8765"),
        ("publisher", "hub", "ollama"),
        ("steps", "0", "at least 1"),
        ("learning_rate", "2", "at most 1"),
        ("dataset_roots", "relative", "absolute"),
        ("name_prefix", "UPPER", "tuned-"),
        ("name_template", "{job}:latest", "{prefix}{job}:{run}"),
        ("backend", "../x", "unsloth"),
        ("replay", "never", "'off'"),
        ("replay", "0", "'off'"),
        ("rounding", "nearest", "compensated"),
        ("min_learning_kept", "1.1", "at most 1"),
        ("max_unrelated_over_base", "-0.1", "at least 0"),
    ],
)
def test_a_bad_value_is_told_with_name_origin_and_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, remedy: str
) -> None:
    with pytest.raises(InvalidRequest) as flag:
        load_settings({name: value})
    assert f"'{name}' from the flag {flag_name(name)}" in str(flag.value)
    assert remedy in str(flag.value)

    file = tmp_path / "x.toml"
    file.write_text(f'{name} = "{value}"\n')
    with pytest.raises(InvalidRequest, match=f"'{name}' from {file}"):
        load_settings(config=file)

    monkeypatch.setenv(variable_name(name), value)
    with pytest.raises(InvalidRequest, match=f"environment variable {variable_name(name)}"):
        load_settings(config=file)


def test_a_file_with_an_unknown_key_or_a_fault_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("stepz = 3\n")
    with pytest.raises(InvalidRequest, match=r"x.toml sets 'stepz'.*steps"):
        load_settings(config=file)
    file.write_text("steps = = 3\n")
    with pytest.raises(InvalidRequest, match="not valid TOML"):
        load_settings(config=file)
    with pytest.raises(InvalidRequest, match="does not exist"):
        load_settings(config=tmp_path / "missing.toml")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_settings(config=tmp_path)


def test_every_setting_has_a_described_flag() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    for name in Settings.model_fields:
        assert f"  {flag_name(name)} " in text
        assert variable_name(name) in text.replace("\n", "")
    parsed = parser.parse_args(["--learning-rate", "0.001", "--port", "9"])
    assert given_flags(parsed) == {"learning_rate": "0.001", "port": "9"}


def test_settings_pass_through_the_environment_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_settings(
        {
            "data_dir": str(tmp_path),
            "dataset_roots": os.pathsep.join(["/a", "/b"]),
            "allowed_hosts": "x,y",
            "learning_rate": "0.002",
            "ollama_host": "::1",
            "replay": "0.5",
            "rounding": "stochastic",
            "min_agreement": "0.9",
        }
    )
    assert (settings.training.replay, settings.fidelity.min_agreement) == (0.5, 0.9)
    for variable, value in settings.as_environment().items():
        monkeypatch.setenv(variable, value)
    assert load_settings() == settings


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_TRAINER_STEPZ", "1")
    monkeypatch.setenv("OLLAMA_TRAINER_STEPS", "1")
    assert unknown_variables() == ["OLLAMA_TRAINER_STEPZ"]
