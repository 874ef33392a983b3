"""Every setting, declared once.

A field of `Settings` is a setting's name, type, bounds, default and description; the environment
variable, the TOML key and the command line flag all come from it. The fields of
`records.TrainingOptions`, `DatasetOptions` and `FidelityOptions` are inherited. Sources, first
wins: flags, environment (`OLLAMA_TRAINER_*`), TOML file, default.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin

import platformdirs
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ollama_trainer.errors import InvalidRequest
from ollama_trainer.names import DEFAULT_TEMPLATE, check_prefix, check_template
from ollama_trainer.records import DatasetOptions, FidelityOptions, TrainingOptions

ENV_PREFIX = "OLLAMA_TRAINER_"
#: Names the TOML file; the flag `--config` goes before it.
CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
#: Addresses to listen on that are no name to be called by.
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", "[::]", ""})  # noqa: S104 - only compared with
_APP = "ollama-trainer"


def _default_data_dir() -> Path:
    return platformdirs.user_data_path(_APP, appauthor=False)


class Settings(BaseSettings, TrainingOptions, DatasetOptions, FidelityOptions):
    """What this installation does where a run does not say otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    host: str = Field("127.0.0.1", description="Address that the server listens on.")
    port: int = Field(
        8765, ge=0, le=65535, description="Port that the server listens on; 0 takes a free one."
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Directory for runs, their models and caches; one server owns it.",
    )
    base: str = Field(
        "",
        max_length=1000,
        description="Base model to train on: a name in Ollama, 'smollm2', 'gguf:' or 'hf:'; empty: "
        "the only model in Ollama that can be trained.",
    )
    publisher: Literal["ollama", "folder"] = Field(
        "ollama",
        description="Where a finished model goes: created in Ollama, or left in its run directory.",
    )
    backend: str = Field(
        "unsloth", pattern=r"^[A-Za-z0-9_]+$", description="Training backend of the worker."
    )
    quantization: str = Field(
        "same",
        pattern=r"^[A-Za-z0-9_]+$",
        description="Type of the finished model's weights; 'same' keeps the base's.",
    )
    rounding: Literal["compensated", "stochastic"] = Field(
        "compensated",
        description="How changes of weights are put on the base's scales: with each error made "
        "good by the weights after it, or by chance alone.",
    )
    dataset_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description=f"Directories that data sets may lie in, joined by '{os.pathsep}'; "
        "none means any absolute path.",
    )
    ollama_host: str = Field(
        "127.0.0.1:11434",
        validation_alias="ollama_host",
        description="Ollama's address, in any form that Ollama itself takes.",
    )
    ollama_memory: Literal["share", "unload", "wait"] = Field(
        "unload",
        description="Where memory is too short for a training beside the models that an Ollama on "
        "this machine holds: they stay, they are unloaded as soon as they answer nobody, or the "
        "run waits until they are gone.",
    )
    name_prefix: str = Field("tuned-", description="Beginning of the finished models' names.")
    name_template: str = Field(
        DEFAULT_TEMPLATE,
        description="The finished models' names: '{job}' before the ':', '{run}' in the tag after "
        "it, '{prefix}' where name_prefix goes, and a namespace with '/' before all, if wanted.",
    )
    unknown_run: Literal["not_found", "failed"] = Field(
        "not_found",
        description="What the status of a run that nobody submitted is: an error 404, or the word "
        "'failed', which ends the polling of a client that reads nothing else.",
    )
    keep_last: int = Field(
        3,
        ge=0,
        description="Finished runs of each job whose adapter and GGUF are kept; that of the model "
        "published last always is.",
    )
    cache_gigabytes: float = Field(
        50.0,
        ge=0,
        description="What is made of bases and kept for further runs (dequantised weights, "
        "conversions) may take so much; what was used longest ago makes way.",
    )
    checkpoint_every_s: float = Field(
        30.0,
        ge=0,
        description="Seconds of training between two checkpoints; 0 makes one after every step.",
    )
    retry_for_s: float = Field(
        86400.0,
        ge=0,
        le=1e8,
        description="How many seconds a run waits for what may pass, an Ollama that is away or a "
        "full disk, before it fails.",
    )
    lease_s: float = Field(
        60.0,
        gt=0,
        description="A worker that gives no sign of life for so many seconds is ended, and its "
        "run goes on with another one.",
    )
    stall_s: float = Field(
        3600.0,
        gt=0,
        description="A worker that lives and tells nothing new for so many seconds is ended, and "
        "its run goes on with another one.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Further names that requests may call the server by, joined by ','.",
    )

    @property
    def training(self) -> TrainingOptions:
        return TrainingOptions(
            **{name: getattr(self, name) for name in TrainingOptions.model_fields}
        )

    @property
    def dataset(self) -> DatasetOptions:
        return DatasetOptions(**{name: getattr(self, name) for name in DatasetOptions.model_fields})

    @property
    def fidelity(self) -> FidelityOptions:
        return FidelityOptions(
            **{name: getattr(self, name) for name in FidelityOptions.model_fields}
        )

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("dataset_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if _is_text(value) else value

    @field_validator("dataset_roots")
    @classmethod
    def _absolute_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        roots = tuple(root.expanduser() for root in value)
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"{root} is not an absolute path")
        return roots

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()]
            if _is_text(value)
            else value
        )

    @field_validator("name_prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        return check_prefix(value)

    @field_validator("name_template")
    @classmethod
    def _template(cls, value: str, info: ValidationInfo) -> str:
        # Declared after the prefix, which is not there if it is not valid itself.
        return check_template(value, info.data.get("name_prefix", ""))

    def as_environment(self) -> dict[str, str]:
        """The variables that make another process of this program settle on the same values."""
        values = ((variable_name(name), getattr(self, name)) for name in type(self).model_fields)
        return {
            variable: _as_text(variable, value) for variable, value in values if value is not None
        }


def load_settings(
    flags: Mapping[str, object] | None = None, config: Path | None = None
) -> Settings:
    """Settles every setting from its sources.

    Args:
        flags: setting name -> value, as given on the command line.
        config: the TOML file; None means the file named by the environment, else the one in the
            platform's configuration directory, if it exists.

    Raises:
        InvalidRequest: a value is not valid, a TOML key is unknown, or the file cannot be read.
    """
    flags = dict(flags or {})
    path, table = _read_config(config)
    known = Settings.model_fields
    for key in table:
        if key not in known:
            raise InvalidRequest(
                f"{path} sets '{key}', which is no setting",
                f"Remove it, or use one of: {', '.join(sorted(known))}.",
            )
    in_environment = {name for name in known if os.environ.get(variable_name(name))}
    from_file = {key: value for key, value in table.items() if key not in in_environment}
    try:
        return Settings(**{**from_file, **flags})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if name in flags:
            origin = f"the flag {flag_name(name)}"
        elif name in in_environment:
            origin = f"the environment variable {variable_name(name)}"
        else:
            origin = str(path)
        raise _invalid(name, origin, first["input"], first["msg"]) from error


def variable_name(name: str) -> str:
    """The environment variable of a setting; Ollama's own keeps its name."""
    return (
        name.upper()
        if Settings.model_fields[name].validation_alias
        else f"{ENV_PREFIX}{name.upper()}"
    )


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def describe(name: str) -> str:
    """A setting's description, bounds of numbers included."""
    field = Settings.model_fields[name]
    text = field.description or f"Training option '{name}'."
    bounds = [
        f"{sign} {getattr(bound, key)}"
        for bound in field.metadata
        for key, sign in _SIGNS.items()
        if hasattr(bound, key)
    ]
    return f"{text} ({', '.join(bounds)})" if bounds else text


def default_text(name: str) -> str:
    """A setting's default as a person would type it; empty where there is none."""
    value = Settings.model_fields[name].get_default(call_default_factory=True)
    return "" if value in (None, ()) else str(value)


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Adds `--config` and one flag a setting; values stay text until `load_settings` reads them."""
    group = parser.add_argument_group("settings")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file with settings [{CONFIG_VARIABLE}]"
    )
    for name in names if names is not None else Settings.model_fields:
        default = default_text(name)
        help_text = (
            f"{describe(name)} [{variable_name(name)}{f'; default {default}' if default else ''}]"
        )
        group.add_argument(
            flag_name(name),
            dest=name,
            default=argparse.SUPPRESS,
            metavar=_metavar(name),
            help=help_text.replace("%", "%%"),
        )


def given_flags(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings among parsed arguments."""
    return {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}


def unknown_variables() -> list[str]:
    """Environment variables that look like settings and are none: most likely misspelt."""
    known = {variable_name(name) for name in Settings.model_fields} | {CONFIG_VARIABLE}
    return sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)


_SIGNS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _as_text(variable: str, value: object) -> str:
    if isinstance(value, tuple):
        separator = os.pathsep if variable.endswith("ROOTS") else ","
        return separator.join(str(part) for part in value)
    return str(value)


def _metavar(name: str) -> str:
    annotation = Settings.model_fields[name].annotation
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return "N" if annotation in (int, int | None, float | None) else name.rsplit("_", 1)[-1].upper()


def _read_config(config: Path | None) -> tuple[Path, dict[str, Any]]:
    named = config or (Path(value) if (value := os.environ.get(CONFIG_VARIABLE)) else None)
    path = named or platformdirs.user_config_path(_APP, appauthor=False) / "config.toml"
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if named is None:
            return path, {}
        raise InvalidRequest(
            f"the settings file {path} does not exist", "Create it, or name another one."
        ) from error
    except OSError as error:
        raise InvalidRequest(
            f"the settings file {path} cannot be read: {error.strerror}", "Name a readable file."
        ) from error
    except ValueError as error:
        raise InvalidRequest(
            f"the settings file {path} is not valid TOML: {error}", "Mend that line."
        ) from error


def _invalid(name: str, origin: str, value: object, problem: str) -> InvalidRequest:
    default = default_text(name)
    hint = f" The default is {default}." if default else ""
    problem = problem.removeprefix("Value error, ")
    return InvalidRequest(
        f"the setting '{name}' from {origin} is not valid: "
        f"{problem[:1].lower()}{problem[1:]}, got {value!r}",
        f"{describe(name).rstrip('.')}.{hint}",
    )
