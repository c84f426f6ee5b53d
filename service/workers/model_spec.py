"""The models that a replica serves, as an operator writes them: a TOML file, flags, or one set of settings. No torch.

A file has one table for each model, `[models.NAME]`. A key that a table leaves out has the value of the setting with
the same name.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from model.family_names import family_names
from model.modalities import sees_videos
from model.weight_bits import Quantization
from service.workers.specs import MAX_WORKERS, WorkerSpec, parse_workers

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DEVICE = r"^(auto|cpu|cuda(:\d{1,3})?)$"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Names of models that an operator chooses; they become part of paths and of metric labels."""
_LONGEST_QUOTE = 60
_FLAG = re.compile(r"(?P<name>[^=]+)=(?P<family>[^:=]+):(?P<checkpoint>.*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One model that a replica serves: what its workers load, and where they run."""

    name: str
    """The public name, unique in the replica."""
    family: str
    checkpoint: Path | None
    """A folder with the family's files; None is the family's small model."""
    dtype: Dtype
    quantization: Quantization | None
    workers: tuple[WorkerSpec, ...]
    max_num_seqs: int
    is_default: bool = False
    """Whether it answers requests that name no model; one model of a replica does."""
    is_eager: bool = False
    """Whether an upload prepares its features at once, as it does for the default model."""


def _known_family(name: str) -> str:
    if name not in family_names():
        raise ValueError(f"there is no family {name!r}; the families are {', '.join(family_names())}")
    return name


def _workers_as_text(value: object, given: ValidationInfo) -> str:
    """Check a number of workers, or their roles, for the family of the same table."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be a number, or roles such as 'encode,generate*2'")
    parse_workers(str(value), device="auto", has_encoder=sees_videos(given.data.get("family", "")))
    return str(value)


def _path_or_none(value: object) -> Path | None:
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a checkpoint is the path of a folder, as text")
    return Path(value) if value else None


def _known_device(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(DEVICE, value):
        raise ValueError(f"there is no device {_shortened(value)}; write auto, cpu, cuda or cuda:N")
    return value


def _proper_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(MODEL_NAME, value):
        raise ValueError(
            f"{_shortened(value)} is no name; use up to 128 letters, digits and . _ - after a letter or digit"
        )
    return value


def _shortened(text: str) -> str:
    """The text between quotation marks, on one line, without the end of a long one."""
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…")


Device = Annotated[str, Field(pattern=DEVICE), BeforeValidator(_known_device)]
"""Where a worker runs; the refusal of another text is a sentence."""
ModelName = Annotated[str, Field(pattern=MODEL_NAME), BeforeValidator(_proper_name)]
"""The name of a model; the refusal of another text is a sentence."""


class ModelOptions(BaseModel):
    """What an operator says about one model; None leaves a value to the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    family: Annotated[str, BeforeValidator(_known_family)]
    checkpoint: Annotated[Path | None, BeforeValidator(_path_or_none)] = None
    dtype: Dtype | None = None
    quantize: Quantization | None = None
    device: Device | None = None
    workers: Annotated[str, BeforeValidator(_workers_as_text, json_schema_input_type=int | str)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] | None = None
    eager: bool = False


class ModelTable(ModelOptions):
    """A table of a model file."""

    default: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDefaults:
    """The values of the keys that a model's table leaves out."""

    dtype: Dtype
    quantization: Quantization | None
    device: str
    workers: str
    max_num_seqs: int

    def complete(self, name: str, table: ModelOptions, *, is_default: bool = False) -> ModelSpec:
        """Return the model that a table or a request describes.

        Raises:
            ValueError: the workers of the settings do not suit the model.
        """
        try:
            workers = parse_workers(
                table.workers or self.workers,
                device=table.device or self.device,
                has_encoder=sees_videos(table.family),
            )
        except ValueError as error:
            raise ValueError(
                f"the model {name!r} cannot have the workers {table.workers or self.workers!r}: {error}"
            ) from None
        return ModelSpec(
            name=name,
            family=table.family,
            checkpoint=table.checkpoint,
            dtype=table.dtype or self.dtype,
            quantization=table.quantize or self.quantization,
            workers=workers,
            max_num_seqs=table.max_num_seqs or self.max_num_seqs,
            is_default=is_default,
            is_eager=table.eager,
        )


NamedTable = tuple[str, ModelTable]
"""The name of a model and its table."""


def read_model_file(value: object) -> object:
    """Read the tables of the model file at a path; a value that is no path is returned as it is.

    Paths of checkpoints are relative to the file's folder.

    Raises:
        ValueError: the file cannot be read, or a table has an unknown key or an invalid value; the message is one
            sentence that names the file and the key.
    """
    if not isinstance(value, str | Path):
        return value
    path = Path(value)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path} is not TOML ({error})") from None
    if unknown := sorted(document.keys() - {"models"}):
        raise ValueError(f"{path}: {unknown[0]!r} is not a key of a model file; write [models.NAME]")
    tables = document.get("models")
    if not isinstance(tables, dict) or not tables:
        raise ValueError(f"{path} describes no model; write a table [models.NAME] for each")
    return tuple(
        (name, _read_table(name, values, place=f"{path}: models.{name}", folder=path.parent))
        for name, values in tables.items()
    )


def _read_table(name: str, values: object, *, place: str, folder: Path) -> ModelTable:
    _check_name(name, place=place)
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be a table")
    try:
        table = ModelTable.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "extra_forbidden":
            known = ", ".join(ModelTable.model_fields)
            raise ValueError(f"{place}.{first['loc'][0]} is not a key of a model; the keys are {known}") from None
        raise ValueError(f"{place}.{first['loc'][0]}: {_sentence(error)}") from None
    return table if table.checkpoint is None else table.model_copy(update={"checkpoint": folder / table.checkpoint})


def parse_model_flags(value: object) -> object:
    """Parse flags `NAME=FAMILY:CHECKPOINT`, a list or a text with commas; an empty checkpoint is the small model.

    Raises:
        ValueError: a flag is malformed, or there is no such family.
    """
    if isinstance(value, str):
        value = [flag.strip() for flag in value.split(",") if flag.strip()]
    if not isinstance(value, list | tuple):
        return value
    return tuple(_parse_flag(flag) if isinstance(flag, str) else flag for flag in value)


def _parse_flag(text: str) -> NamedTable:
    found = _FLAG.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} does not describe a model; write NAME=FAMILY:CHECKPOINT, such as tiny=videochat:")
    _check_name(found["name"], place=repr(text))
    checkpoint = Path(found["checkpoint"]) if found["checkpoint"] else None
    try:
        return found["name"], ModelTable(family=found["family"], checkpoint=checkpoint)
    except ValidationError as error:
        raise ValueError(f"{text!r}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return first["msg"].removeprefix("Value error, ")


def _check_name(name: str, *, place: str) -> None:
    try:
        _proper_name(name)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def with_one_default(specs: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """Return the models of a replica, of which one is the default: the marked one, else the first.

    Raises:
        ValueError: two models have one name, two are marked as the default, or there are too many workers.
    """
    names = [spec.name for spec in specs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two models have the name {repeated[0]!r}")
    marked = [spec.name for spec in specs if spec.is_default]
    if len(marked) > 1:
        raise ValueError(f"the models {marked[0]!r} and {marked[1]!r} are both marked as the default")
    if sum(len(spec.workers) for spec in specs) > MAX_WORKERS:
        raise ValueError(f"all models together may have at most {MAX_WORKERS} workers")
    default = marked[0] if marked else names[0]
    return tuple(replace(spec, is_default=spec.name == default) for spec in specs)
