"""`reeltalk models known` lists published checkpoints with sources and memory; `pull` takes their names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model.checkpoints.catalogue import PublishedCheckpoint
from model.checkpoints.pulled import pulled_repository
from model.families import family_module, published_checkpoints
from service.commands.main import app
from tests.hub import fake_hub

RELEASES = [(family, each) for family, found in published_checkpoints().items() for each in found]
GIB = 1024**3


def reeltalk(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="reeltalk")


def test_a_table_has_every_published_checkpoint() -> None:
    titles, *rows = reeltalk("models", "known").stdout.splitlines()
    assert titles.split() == ["name", "family", "size", "float16", "int8", "int4", "repository", "licence"]
    assert [row.split()[:3] for row in rows] == [[each.name, family, each.size] for family, each in RELEASES]
    [row] = [row for row in rows if row.startswith("video-chatgpt-7b")]
    assert "MBZUAI/Video-ChatGPT-7B openai/clip-vit-large-patch14" in row
    [row] = [row for row in rows if row.startswith("videochat-7b")]
    assert "not on the Hub" in row


def test_the_memory_is_what_plan_computes() -> None:
    known = {each["name"]: each for each in json.loads(reeltalk("models", "known", "--json").stdout)["data"]}
    assert known["video-chatgpt-7b"]["repositories"]["."] == "MBZUAI/Video-ChatGPT-7B"
    for each in known.values():
        planned = reeltalk("plan", "--family", each["family"], "--size", each["size"]).stdout
        [weights] = [line for line in planned.splitlines() if "all weights" in line]
        weight_bytes = float(weights.split("\u2502")[-2].replace(",", "")) * 1024**2
        memory = each["memory_bytes"]
        assert weight_bytes < memory["float16"] < 1.5 * weight_bytes + 4 * GIB
        assert memory["int4"] < memory["int8"] < memory["float16"]


@pytest.mark.parametrize(("family", "release"), RELEASES, ids=[each.name for _, each in RELEASES])
def test_each_has_a_size_of_its_family_a_licence_and_a_source(family: str, release: PublishedCheckpoint) -> None:
    assert release.size in family_module(family).SIZES
    assert release.licence
    assert release.repositories or release.note
    assert all(repository.count("/") == 1 for repository in release.repositories.values())


def test_names_are_unique_and_no_repository_has_one() -> None:
    names = [each.name for _, each in RELEASES]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "/" in name]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["videochat-7b"], "videochat-7b cannot be downloaded from the Hub. The Hub has no complete copy"),
        (["video-chatgpt-7b", "--revision", "main"], "--revision needs a repository, owner/name."),
    ],
)
def test_what_cannot_be_pulled_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    done = reeltalk("pull", *arguments)
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_a_published_name_is_pulled_from_its_repositories(tmp_path: Path) -> None:
    names = ("MBZUAI/Video-ChatGPT-7B", "openai/clip-vit-large-patch14", "mmaaz60/LLaVA-7B-Lightening-v1-1")
    with fake_hub({name: {"config.json": name.encode(), "modeling.py": b"code"} for name in names}) as endpoint:
        command = [sys.executable, "-m", "service.commands.main", "pull", "video-chatgpt-7b", "--to", "parts"]
        environ = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        environ["PYTHONPATH"] = str(Path(__file__).parents[3])
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "video-chatgpt-7b is in parts"
    parts = tmp_path / "parts"
    folders = (parts, parts / "clip-vit-large-patch14", parts / "LLaVA-Lightning-7B-v1-1")
    assert [(folder / "config.json").read_text() for folder in folders] == list(names)
    assert [pulled_repository(folder) for folder in folders] == list(names)
    assert not list(parts.rglob("*.py")), "code is never downloaded"


def test_listing_published_checkpoints_imports_no_torch() -> None:
    code = "import sys; from model.families import published_checkpoints as f; f(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
