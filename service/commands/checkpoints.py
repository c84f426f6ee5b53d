"""The commands `reeltalk pull`, `convert`, `verify` and `plan` for checkpoints; they import torch when they run."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.weight_bits import Quantization

if TYPE_CHECKING:
    from model.verification.comparison import Row

_console = Console()
_errors = Console(stderr=True)

Dtype = Literal["float32", "float16", "bfloat16"]
FamilyOption = Annotated[str, typer.Option(help="The model family.")]
DtypeOption = Annotated[Dtype, typer.Option(help="The data type of weights and activations.")]
QuantizeOption = Annotated[Quantization | None, typer.Option(help="Quantize the language model's weights.")]


def pull(
    name: Annotated[
        str, typer.Argument(help="owner/name on the Hugging Face Hub, or a name that `models known` lists.")
    ],
    folder: Annotated[Path | None, typer.Option("--to", help="The folder to write.", show_default="the name")] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit of owner/name.")] = None,
) -> None:
    """Download weights, configuration and tokenizer from the Hugging Face Hub."""
    with _user_errors():
        from model.checkpoints.hub import pull as fetch
        from model.families import published_checkpoints

        target = folder or Path(name.rpartition("/")[2])
        releases = {each.name: each for found in published_checkpoints().values() for each in found}
        release = releases.get(name)
        if release is None:
            fetch(name, target, revision=revision)
        else:
            if revision is not None:
                _refuse(f"{name} is a published model; --revision needs a repository, owner/name.")
            if not release.repositories:
                _refuse(f"{name} cannot be downloaded from the Hub. {release.note}")
            for part, repository in release.repositories.items():
                fetch(repository, target / part, revision=None)
                _say(f"{repository} is in {target / part}")
            if release.note:
                _say(release.note)
    _say(f"{name} is in {target}")


def convert(
    source: Annotated[Path | None, typer.Argument(help="A folder with the published files.")] = None,
    *,
    to: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    part: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a file elsewhere, e.g. llama=vicuna-7b.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A key of the published files to leave out.")] = None,
    family: FamilyOption = "videochat",
    dtype: Annotated[
        Literal["keep", Dtype], typer.Option(help="The data type to write; keep: as published.")
    ] = "float16",
) -> None:
    """Convert published files to one folder of safetensors; an interrupted run continues where it stopped."""
    with _user_errors(), _bar("writing") as report:
        import torch

        from model.checkpoints.folder import write_folder

        checkpoint, origin = _capability(family, "read_source")(
            source,
            parts=_named(part or ()),
            ignored=tuple(ignore or ()),
            dtype=None if dtype == "keep" else getattr(torch, dtype),
        )
        digest = write_folder(to, checkpoint, origin=origin, report=report)
    for note in checkpoint.notes:
        _say(note)
    _say(f"{to} is complete: {len(checkpoint.tensors)} tensors, digest {digest}")


def verify(
    folder: Annotated[Path, typer.Argument(help="Weights, sizes, inputs, and expected.safetensors.")],
    *,
    family: FamilyOption = "videochat",
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Write the computed tensors here (safetensors).")] = None,
) -> None:
    """Run every stage of a model and compare it with reference tensors; exits with status 1 if one differs."""
    with _user_errors():
        from model.verification.verification import Verification

        if out is not None and out.is_dir():
            _refuse(f"{out} cannot be written: it is a folder.")
        if out is not None and not out.parent.is_dir():
            _refuse(f"{out} cannot be written: there is no folder {out.parent}.")
        verification = Verification(folder, family=family, dtype=dtype, device=device, quantization=quantize)
        rows = _printed(verification.rows())
        if out is not None:
            verification.write(out)
            _say(f"{len(verification.tensors)} tensors written to {out}")
    if not verification.has_reference:
        _say("Nothing was compared: the folder has no expected.safetensors.")
    if num_shown := sum(row.verdict == "shown" for row in rows):
        _say(f"{num_shown} stages differ because of the lower precision and were not judged.")
    num_bad = sum(row.is_bad for row in rows)
    nothing = "Nothing else differs." if num_shown else "Nothing differs."
    _say(f"{num_bad} stages differ." if num_bad else nothing)
    sys.exit(1 if num_bad else 0)


def plan(
    *,
    size: Annotated[str | None, typer.Option(help="A published size, e.g. 7b; by default the family's first.")] = None,
    family: FamilyOption = "videochat",
    dtype: DtypeOption = "float16",
    quantize: QuantizeOption = None,
    budget_mib: Annotated[int | None, typer.Option(min=1, help="MiB to fit into.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a conversation.", show_default="the model's maximum")
    ] = None,
) -> None:
    """Compute how much memory a model needs, without loading it."""
    with _user_errors():
        import torch

        from model.memory_estimate import MIB, estimate_memory

        sizes = _capability(family, "SIZES")
        size = size or next(iter(sizes))
        if size not in sizes:
            _refuse(f"{family} has no size {size!r}; there are: {', '.join(sizes)}.")
        counts = _capability(family, "value_counts")(size)
        memory = estimate_memory(counts, getattr(torch, dtype), quantize)
    title = f"{family} {size} in {dtype}" + (f", language model in {quantize}" if quantize else "")
    table = Table("module", "parameters", "MiB", title=title)
    for name, count in counts.modules.items():
        table.add_row(name, f"{count:,}", f"{memory.module_bytes[name] / MIB:,.1f}")
    table.add_section()
    table.add_row("all weights", f"{sum(counts.modules.values()):,}", f"{memory.weight_bytes / MIB:,.1f}")
    _console.print(table)
    num_tokens = tokens or counts.max_model_len
    _say(f"KV cache: {memory.kv_bytes_per_token:,} bytes a token")
    _say(f"  {memory.kv_bytes_per_token * num_tokens / MIB:,.1f} MiB for a conversation of {num_tokens:,} tokens")
    if memory.condition_bytes:
        _say(f"Condition: {memory.condition_bytes / MIB:,.1f} MiB a conversation")
    if memory.encoder_bytes_per_clip:
        _say(f"Encoding one clip: about {memory.encoder_bytes_per_clip / MIB:,.0f} MiB (an estimate)")
    if budget_mib is not None:
        batch = memory.largest_batch(budget_mib * MIB, num_tokens=num_tokens)
        _say(f"Largest batch in {budget_mib:,} MiB: {batch} conversations of {num_tokens:,} tokens")


def add_checkpoint_commands(app: typer.Typer, *, panel: str) -> None:
    """Add these commands to `app`, under the heading `panel` of its help."""
    for command in (pull, convert, verify, plan):
        app.command(rich_help_panel=panel)(command)


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn an error that the user can fix into one line and exit status 2."""
    from model.families import UnknownFamily
    from model.text.tokenizer import TokenizerError
    from model.weights import WeightsError

    try:
        yield
    except (WeightsError, TokenizerError, UnknownFamily) as error:
        _refuse(str(error))


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _capability(family: str, name: str) -> Any:
    """An attribute of a family's module; exits if the family does not have it."""
    from model.families import family_module

    found = getattr(family_module(family), name, None)
    if found is None:
        _refuse(f"The family {family} does not offer this command yet.")
    return found


def _named(parts: Iterable[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for part in parts:
        name, equals, path = part.partition("=")
        if not (name and equals and path):
            _refuse(f"--part must be NAME=PATH, not {part!r}.")
        named[name] = Path(path)
    return named


def _printed(rows: "Iterable[Row]") -> "list[Row]":
    """Print each row as soon as it is computed; returns all rows."""
    printed = []
    _say(f"{'stage':<32} {'max|diff|':>10} {'max|expected|':>13}  {'':7} note")
    for row in rows:
        error = "" if row.error is None else f"{row.error:.2e}"
        scale = "" if row.scale is None else f"{row.scale:.4g}"
        _say(f"{row.name:<32} {error:>10} {scale:>13}  {row.verdict:7} {row.note}".rstrip())
        printed.append(row)
    return printed


def _say(line: str) -> None:
    _console.print(line, markup=False, highlight=False, soft_wrap=True)


def _refuse(sentence: str) -> None:
    _errors.print(f"reeltalk: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
