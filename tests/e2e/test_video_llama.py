"""Video-LLaMA, converted from its published files, answers over HTTP like the original program, and without sound."""

from pathlib import Path

from typer.testing import CliRunner

from service.commands.main import app
from tests.clips import h264_mp4
from tests.parity.goldens import read_json
from tests.published import golden
from tests.running import running
from tests.sound_clips import damaged_sound


def test_a_converted_model_gives_the_texts_of_the_original_with_and_without_sound(tmp_path: Path) -> None:
    reference, mine = golden("video-llama-e2e"), tmp_path / "mine"
    source, sizes = golden("video-llama-e2e-ckpt"), reference / "config.json"
    arguments = ["convert", str(source), "--to", str(mine), "--family", "video-llama", "--part", f"config={sizes}"]
    converted = CliRunner().invoke(app, arguments)
    assert converted.exit_code == 0, converted.output
    conversations = read_json(reference / "dialogue.json")["conversations"]["llama_2"]
    with running(tmp_path / "data", "--family", "video-llama", "--checkpoint", str(mine)) as service:
        video = service.upload(reference / "clip.mp4")
        assert [frame["index"] for frame in video["frames"]] == read_json(reference / "clip.json")["indices"]
        assert video["audio"] == {"codec": "aac", "rate": 44100, "channels": 2}
        assert video["audio_error"] is None
        for sense, frames in (("audio_video", None), ("video", {"audio": False})):
            session = service.open_session(video["id"], **({} if frames is None else {"frames": frames}))
            for turn in conversations[sense]["turns"]:
                answer = service.ask(session, turn["question"], max_tokens=len(turn["generated_ids"]))
                assert answer["content"].strip() == turn["text"], sense
        silent = service.upload(h264_mp4(tmp_path / "silent.mp4"))
        assert (silent["audio"], silent["audio_error"]["code"]) == (None, "no_audio_stream")
        assert service.ask(service.open_session(silent["id"]), "What is it?", max_tokens=4)["content"]
        damaged = service.upload(damaged_sound(reference / "clip.mp4", tmp_path / "damaged.mp4"))
        assert damaged["status"] == "ready"
        assert (damaged["audio"], damaged["audio_error"]["code"]) == (None, "undecodable_audio")
        assert service.ask(service.open_session(damaged["id"]), "What is it?", max_tokens=4)["content"]
