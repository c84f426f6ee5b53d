"""ImageBind-LLM, converted from its published files, answers over HTTP like the original, with and without sound."""

from pathlib import Path

from typer.testing import CliRunner

from service.commands.main import app
from tests.parity.goldens import read_json
from tests.published import golden
from tests.running import running

FAMILY = "imagebind-llm"


def test_a_converted_model_gives_the_texts_of_the_original_with_and_without_sound(tmp_path: Path) -> None:
    reference, mine = golden(f"{FAMILY}-e2e"), tmp_path / "mine"
    parts = ["--part", f"config={reference / 'config.json'}"]
    source = str(golden(f"{FAMILY}-e2e-ckpt"))
    converted = CliRunner().invoke(app, ["convert", source, "--to", str(mine), "--family", FAMILY, *parts])
    assert converted.exit_code == 0, converted.output
    turns = {turn["name"]: turn for turn in read_json(reference / "dialogue.json")["turns"]}
    with running(tmp_path / "data", "--family", FAMILY, "--checkpoint", str(mine)) as service:
        video = service.upload(reference / "clip.mp4")
        windows = read_json(reference / "clip.json")["video_clips"]
        assert [frame["index"] for frame in video["frames"]] == [i for each in windows for i in each["frame_ids"]]
        for name, options in {"video_audio": {}, "video": {"frames": {"audio": False}}}.items():
            session = service.open_session(video["id"], **options)
            answer = service.ask(session, turns[name]["instruction"], max_tokens=16)
            assert answer["content"].strip() == turns[name]["text"], name
