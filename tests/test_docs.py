"""The documentation agrees with the code: links and names resolve, codes and routes are complete, commands run."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from safetensors.torch import save_file

from model.engine.engine import Engine, EngineConfig
from model.engine.sampling_params import SamplingParams
from model.family import EncodedClip, Family, build_prompt
from model.text.conversation import Clip, Conversation, Turn
from model.video.spec import VideoErrorCode
from model.weights import WeightsError, load_strict, seeded
from service import errors
from service.api.errors import FRAMEWORK_CODES, VALIDATION_CODES
from service.commands.demo import SAMPLE
from service.commands.main import app
from service.commands.openapi import document
from service.errors import CODES, ServiceError
from tests import node_clients
from tests.running import parse_events, running

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LIVING = [path for path in PAGES if path.parent.name != "decisions" and path.name != "log.md"]
"""Pages about the code as it is now; decision records and the log describe the code of their date."""
FOLDERS = ("model", "service", "tests", "docker", "docs", "openapi", "benchmarks", "examples", "training")

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NAME = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)(?::([\w.]+))?`")
_TREE_LINE = re.compile(r"^( *)([\w.-]+/?)  +\S")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE_ROW = re.compile(r"^\| `(\w+)` \| (\d{3}|any other) \| (.+) \|$", re.MULTILINE)
_REELTALK = re.compile(r"^(?:.*[\s/])?reeltalk ([a-z].*)$", re.MULTILINE)
_BALANCER_ERROR = re.compile(r"return (\d+) '.*\"code\": \"(\w+)\"")


def page(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(name: str, kind: str) -> list[str]:
    """The bodies of a page's fenced blocks of one kind."""
    return [body for found, body in _BLOCK.findall(page(name)) if found == kind]


# -- links and names


def heading_anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in _LINK.findall(path.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path if not file else path.parent / file
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target), link


def defined_names(path: Path) -> set[str]:
    """The names a module binds at its top level, and `Class.member`."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        for name in _bound(node):
            names.add(name)
            names |= {f"{name}.{member}" for inner in getattr(node, "body", ()) for member in _bound(inner)}
    return names


def _bound(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


@pytest.mark.parametrize("path", LIVING, ids=lambda path: path.name)
def test_every_file_and_function_that_is_named_exists(path: Path) -> None:
    for file, name in _NAME.findall(path.read_text()):
        assert (ROOT / file).exists(), file
        assert not name or name in defined_names(ROOT / file), f"{file}:{name}"


def tree_entries() -> Iterator[str]:
    """The paths of the tree in architecture.md, relative to the project."""
    folders: list[str] = []
    for line in blocks("architecture.md", "text")[0].splitlines():
        if entry := _TREE_LINE.match(line):
            depth = len(entry[1]) // 2
            folders[depth:] = [entry[2]]
            yield "".join(folders[: depth + 1])


def test_the_tree_has_every_folder_of_the_packages_and_no_other() -> None:
    named = {entry.rstrip("/") for entry in tree_entries() if entry.endswith("/")}
    assert {entry for entry in named if not (ROOT / entry).is_dir()} == set()
    folders = {
        str(path.parent.relative_to(ROOT))
        for package in ("model", "service")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert folders - named == set()


# -- the interface


def error_classes() -> dict[str, type[ServiceError]]:
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, ServiceError)}


def codes_in(path: Path) -> Iterator[tuple[str, type[ServiceError] | None]]:
    """Codes that a module raises or reports as literals, each with the class it is raised as, if it is raised here."""
    classes = error_classes()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        literals = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        keywords = {
            keyword.arg: keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)
        }
        match node.func.id:
            case name if name in classes:
                yield from ((str(code), classes[name]) for code in literals)
            case "VideoError" | "DecodeFailed":
                yield from ((str(code), None) for code in literals)
            case "Refused" | "Rejected" if "code" in keywords:
                yield str(keywords["code"]), None


def codes_of_the_code_base() -> set[tuple[str, type[ServiceError] | None]]:
    found = {(code, None) for code in (*get_args(VideoErrorCode), *VALIDATION_CODES.values(), "invalid_value")}
    found |= {(code, None) for code in (*FRAMEWORK_CODES.values(), "http_error")}
    found |= {(code, None) for _, code in _BALANCER_ERROR.findall((ROOT / "docker/nginx.conf").read_text())}
    raised: set[tuple[str, type[ServiceError] | None]] = set(found)
    for package in ("model", "service"):
        for path in (ROOT / package).rglob("*.py"):
            raised |= set(codes_in(path))
    return raised


def test_the_table_of_error_codes_has_every_code_with_its_class_and_no_other() -> None:
    raised = codes_of_the_code_base()
    assert {code for code, _ in raised} == set(CODES)
    for code, kind in raised:
        assert kind in {None, CODES[code].error}, code


def test_the_framework_and_the_balancer_give_each_code_the_status_of_the_table() -> None:
    given = [(code, status) for status, code in FRAMEWORK_CODES.items()]
    given += [(code, int(status)) for status, code in _BALANCER_ERROR.findall((ROOT / "docker/nginx.conf").read_text())]
    assert {(code, status) for code, status in given if CODES[code].status != status} == set()


def test_the_documented_table_of_errors_is_the_table() -> None:
    rows = [(code, status) for code, status, _ in _CODE_ROW.findall(page("api.md"))]
    table = {code: str(row.status) for code, row in CODES.items()} | {"http_error": "any other"}
    assert rows == list(table.items())


def test_the_page_about_the_interface_has_every_route_and_no_other() -> None:
    described = re.findall(r"`(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS) (/\S*)`", page("api.md"))
    paths = json.loads(document())["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert set(described) == routes | {("GET", "/")}


# -- what can be run


def shape(value: Any) -> Any:
    """A JSON value with its fields but without its values; of a list, the first item."""
    match value:
        case dict():
            return {key: shape(inner) for key, inner in value.items()}
        case list():
            return [shape(inner) for inner in value[:1]]
        case _:
            return None


def events_shape(text: str) -> list[tuple[str, Any]]:
    """The events in order, each a name and the shape of its data; repetitions count once."""
    events = [(event.name, shape(event.data)) for event in parse_events(iter([*text.splitlines(), ""]))]
    return [event for event, _ in groupby(events)]


def curl_version() -> tuple[int, ...]:
    """Major and minor version of curl; empty if curl or bash is not installed."""
    if not (shutil.which("bash") and shutil.which("curl")):
        return ()
    printed = subprocess.run(["curl", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return tuple(int(number) for number in printed.split()[1].split(".")[:2])


def commands_and_replies() -> list[tuple[str, str, str]]:
    """Every bash block of api.md with the kind and the text of the block after it."""
    found = _BLOCK.findall(page("api.md"))
    return [(body, *found[place + 1]) for place, (kind, body) in enumerate(found) if kind == "bash"]


def test_the_commands_of_the_page_about_the_interface_run_and_reply_as_printed(tmp_path: Path) -> None:
    if curl_version() < (7, 82):
        pytest.skip("needs bash and curl 7.82 or newer")
    pairs = commands_and_replies()
    assert len(pairs) > 10
    # Print a separator after each command; treat HTTP error statuses as errors.
    preamble = 'set -euo pipefail\ncurl() { command curl --fail-with-body "$@"; }\n'
    script = preamble + "printf '\\036'\n".join(command for command, _, _ in pairs)
    with running(tmp_path / "data") as service:
        ran = subprocess.run(
            ["bash", "-c", script.replace("http://127.0.0.1:8000", service.url)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for output, (command, kind, reply) in zip(ran.stdout.split("\036"), pairs, strict=True):
        if kind == "json":
            assert shape(json.loads(output)) == shape(json.loads(reply)), command
        elif reply.startswith("id: "):
            assert events_shape(output) == events_shape(reply), command
        else:
            assert output == reply, command


def shown_commands(path: Path) -> Iterator[list[str]]:
    """The arguments of every `reeltalk …` in the shell blocks of a page, up to a pipe or a redirection."""
    for kind, body in _BLOCK.findall(path.read_text()):
        if kind in {"sh", "bash", "console"}:
            for line in _REELTALK.findall(body.replace("\\\n", " ")):
                yield shlex.split(re.split(r"\s\d?[|<>&]", line)[0], comments=True)


def parse(arguments: list[str]) -> None:
    """Parse the arguments of `reeltalk` and run nothing.

    Raises:
        Exception: there is no such command or option, or an argument is missing or not allowed.
    """
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="reeltalk")
    while hasattr(command, "resolve_command"):
        _, command, arguments = command.resolve_command(context, arguments)
        context = command.context_class(command, parent=context)
    command.make_context(command.name, list(arguments), parent=context)


@pytest.mark.parametrize("path", LIVING, ids=lambda path: path.name)
def test_every_command_that_is_shown_exists_with_its_options(path: Path) -> None:
    for arguments in shown_commands(path):
        parse(arguments)


def test_a_command_or_option_that_does_not_exist_is_noticed() -> None:
    for arguments in (["fetch", "a"], ["serve", "--speed", "9"], ["plan", "--dtype", "float8"], ["convert", "a"]):
        with pytest.raises(Exception, match=r"No such|Missing|not one of"):
            parse(arguments)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("data")) as service:
        yield service.url


def programs(name: str, kind: str) -> list[tuple[str, str]]:
    """Every program of a page in one language, with the text of the block after it."""
    found = _BLOCK.findall(page(name))
    return [(body, found[place + 1][1]) for place, (language, body) in enumerate(found) if language == kind]


def test_the_commands_of_the_page_about_the_terminal_print_what_is_printed(served: str, tmp_path: Path) -> None:
    commands = programs("terminal.md", "bash")
    assert len(commands) > 3
    (tmp_path / "service").symlink_to(ROOT / "service")
    command = tmp_path / "bin" / "reeltalk"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.commands.main "$@"\n')
    command.chmod(0o755)
    environ = {
        **os.environ,
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REELTALK_URL": served,
    }
    for program, printed in commands:
        script = ["bash", "-euo", "pipefail", "-c", program]
        ran = subprocess.run(
            script, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr


@pytest.mark.parametrize("name", ["openai.md", "api.md"])
def test_the_programs_in_python_print_what_is_printed(served: str, tmp_path: Path, name: str) -> None:
    shutil.copy(SAMPLE, tmp_path / "shapes.mp4")
    found = programs(name, "python")
    assert found
    for program, printed in found:
        (tmp_path / "program.py").write_text(program.replace("http://127.0.0.1:8000", served))
        ran = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.stdout == printed, ran.stderr


@pytest.mark.parametrize("name", ["openai.md", "api.md"])
def test_the_programs_in_javascript_print_what_is_printed(served: str, tmp_path: Path, name: str) -> None:
    folder = node_clients.install(tmp_path)
    shutil.copy(SAMPLE, folder / "shapes.mp4")
    found = programs(name, "javascript")
    assert found
    for program, printed in found:
        assert node_clients.run(folder, program.replace("http://127.0.0.1:8000", served)) == printed


def test_the_family_of_the_walk_through_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("pooled")
    monkeypatch.setitem(sys.modules, "pooled", module)
    exec("\n".join(blocks("adding-a-family.md", "python")), vars(module))  # noqa: S102  the page is part of this repository
    assert module.middle_indices(30, 3) == [5, 15, 25]

    family = module.load(checkpoint=None, device="cpu", dtype=torch.float32, quantization=None)
    assert isinstance(family, Family)
    for num_frames in (1, 8, 64):
        features = family.encode(torch.randn(2, num_frames, 3, 64, 64))["video"]
        assert features.shape == (2, *family.parts[0].shape)
    conversation = Conversation(
        clips=(Clip(frame_indices=(0, 1), fps=1.0),), turns=(Turn(role="user", text="ASSISTANT: Yes. USER: No?"),)
    )
    assert family.template.render(conversation)[-1] == "\nUSER: ASSISTANT : Yes. USER : No?\nASSISTANT:"

    engine = Engine(family.language_model, family.tokenizer, EngineConfig())
    prompt = build_prompt(family, conversation, [EncodedClip({"video": features[0]}, "clip")])
    engine.add_request("one", prompt, SamplingParams(max_tokens=4))
    outputs = [output for _ in range(4) for output in engine.step()]
    assert [len(output.token_ids) for output in outputs] == [1, 1, 1, 1]
    assert outputs[-1].finish_reason == "length"

    # The published parts give every tensor of the model; one that is absent is named.
    tensors = seeded(family.network, seed=3)
    published = {re.sub(r"^patches\.", "vision.conv.", name): tensor for name, tensor in tensors.items()}
    published = {re.sub(r"^projection\.", "mm_projector.", name): tensor for name, tensor in published.items()}
    llama = {key.removeprefix("llama_model."): tensor for key, tensor in published.items() if "llama" in key}
    torch.save({key: tensor for key, tensor in published.items() if "llama" not in key}, tmp_path / "pooled-7b.pth")
    (tmp_path / "llama").mkdir()
    save_file(llama, tmp_path / "llama" / "model.safetensors")
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / "llama" / name).touch()
    merged = module.merge(tmp_path)
    load_strict(family.network, merged, key_map=module.KEY_MAP)
    assert merged.keys() == published.keys()
    (tmp_path / "pooled-7b.pth").unlink()
    with pytest.raises(WeightsError, match=r"no pooled-7b\.pth"):
        module.merge(tmp_path)
