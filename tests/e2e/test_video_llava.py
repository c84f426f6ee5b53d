"""Both Video-LLaVAs, converted from their published folders, answer over HTTP like the original programs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.commands.main import app
from tests.parity.goldens import read_json
from tests.published import golden
from tests.running import running


@pytest.mark.parametrize("family", ["video-llava", "video-llava-hf"])
def test_a_converted_model_gives_the_texts_of_the_original_in_two_turns(family: str, tmp_path: Path) -> None:
    reference, mine = golden(f"{family}-e2e"), tmp_path / "mine"
    source = golden(f"{family}-e2e-ckpt")
    converted = CliRunner().invoke(app, ["convert", str(source), "--to", str(mine), "--family", family])
    assert converted.exit_code == 0, converted.output
    with running(tmp_path / "data", "--family", family, "--checkpoint", str(mine)) as service:
        video = service.upload(reference / "clip.mp4")
        assert [frame["index"] for frame in video["frames"]] == read_json(reference / "clip.json")["indices"]
        session = service.open_session(video["id"])
        for turn in read_json(reference / "dialogue.json")["turns"]:
            answer = service.ask(session, turn["question"], max_tokens=len(turn["generated_ids"]))
            assert answer["content"].strip() == turn["text"]
