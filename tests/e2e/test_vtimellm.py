"""VTimeLLM, converted from its published files, answers over HTTP like the original program."""

from pathlib import Path

from typer.testing import CliRunner

from service.commands.main import app
from tests.parity.goldens import read_json
from tests.published import golden
from tests.running import running

FAMILY = "vtimellm"


def test_a_converted_model_gives_the_texts_of_the_original_in_two_turns(tmp_path: Path) -> None:
    reference, mine = golden("vtimellm-e2e"), tmp_path / "mine"
    source = str(golden("vtimellm-e2e-ckpt"))
    command = ["convert", source, "--to", str(mine), "--family", FAMILY, "--dtype", "float32"]
    converted = CliRunner().invoke(app, command)
    assert converted.exit_code == 0, converted.output
    with running(tmp_path / "data", "--family", FAMILY, "--checkpoint", str(mine)) as service:
        video = service.upload(reference / "clip.mp4")
        assert [frame["index"] for frame in video["frames"]] == read_json(reference / "clip.json")["indices"]
        session = service.open_session(video["id"])
        for turn in read_json(reference / "dialogue.json")["turns"]:
            answer = service.ask(session, turn["question"], max_tokens=len(turn["generated_ids"]))
            assert answer["content"].strip() == turn["text"]
