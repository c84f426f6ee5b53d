"""Models are described by a TOML file or by flags; a mistake is refused with one sentence that names its place."""

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, load_settings
from service.workers.specs import WorkerSpec


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.toml"


def load(**overrides: object) -> Settings:
    return load_settings(overrides, environ={})


def names(settings: Settings) -> list[str]:
    return [spec.name + "*" * spec.is_default for spec in settings.model_specs]


def refusal(**overrides: object) -> str:
    with pytest.raises(SettingsError) as refused:
        load(**overrides)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")
    return str(refused.value)


def test_a_file_has_a_table_for_each_model(file: Path) -> None:
    file.write_text("""
[models.small]
family = "videochat"

[models."chat-7b.v2"]
family = "video-chatgpt"
checkpoint = "chatgpt"
dtype = "bfloat16"
quantize = "int8"
device = "cuda:1"
workers = "encode,generate*2@cuda:0"
max_num_seqs = 8
default = true
eager = true
""")
    small, large = load(models=file, dtype="float32", max_num_seqs=4).model_specs
    assert (small.name, small.family, small.checkpoint, small.quantization) == ("small", "videochat", None, None)
    assert (small.dtype, small.max_num_seqs) == ("float32", 4), "what a table leaves out is as in the settings"
    assert not small.is_default
    assert (large.name, large.dtype, large.quantization, large.max_num_seqs) == ("chat-7b.v2", "bfloat16", "int8", 8)
    assert large.checkpoint == file.parent / "chatgpt"
    assert large.workers == (
        WorkerSpec(role="encode", device="cuda:1"),
        WorkerSpec(role="generate", device="cuda:0"),
        WorkerSpec(role="generate", device="cuda:0"),
    )
    assert large.is_default
    assert large.is_eager


def test_a_flag_describes_a_model_and_the_first_one_is_the_default() -> None:
    settings = load(model=["tiny=videochat:", "large=video-chatgpt:/models/large"])
    assert names(settings) == ["tiny*", "large"]
    assert [spec.checkpoint for spec in settings.model_specs] == [None, Path("/models/large")]
    assert load_settings(environ={"REELTALK_MODEL": "a=videochat:, b=videochat:"}).model_specs[1].name == "b"


def test_the_settings_of_one_model_are_one_more_entry(file: Path) -> None:
    file.write_text('[models.second]\nfamily = "videochat"\n')
    assert names(load()) == ["tiny*"]
    assert names(load(models=file)) == ["second*"]
    assert names(load(models=file, model=["third=videochat:"])) == ["second*", "third"]
    assert names(load(models=file, family="videochat")) == ["tiny*", "second"]
    assert names(load(model=["third=videochat:"], checkpoint=Path("/models/mine"))) == ["mine*", "third"]


def test_all_workers_divide_the_cores_among_them() -> None:
    settings = load(model=["a=videochat:", "b=videochat:"], workers="2")
    assert len(settings.worker_specs) == 4
    assert settings.threads_for(10**6) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "describes no model"),
        ("models = 3", "describes no model"),
        ("[", "is not TOML"),
        ('[tiny]\nfamily = "videochat"', "'tiny' is not a key of a model file; write [models.NAME]"),
        ("[models.a]", "models.a.family: Field required"),
        ("models.a = 1", "models.a must be a table"),
        ('[models.a]\nfamily = "moviechat"', "models.a.family: there is no family 'moviechat'; the families are "),
        (
            '[models.a]\nfamily = "videochat"\nquantise = "int8"',
            "models.a.quantise is not a key of a model; the keys are",
        ),
        ('[models.a]\nfamily = "videochat"\nworkers = "speak"', "models.a.workers: 'speak' does not describe a worker"),
        ('[models.a]\nfamily = "videochat"\nworkers = true', "models.a.workers: must be a number"),
        ('[models.a]\nfamily = "videochat"\ndevice = "tpu"', "models.a.device: there is no device 'tpu'; write auto, "),
        ('[models.a]\nfamily = "videochat"\ncheckpoint = ["x"]', "models.a.checkpoint: a checkpoint is the path of"),
        ('[models.a]\nfamily = "videochat"\ncheckpoint = 0', "models.a.checkpoint: a checkpoint is the path of"),
        (
            '[models.a]\nfamily = "videochat"\ncheckpoint = "a\\u0000b"',
            "models.a.checkpoint: a checkpoint is the path of",
        ),
        ('[models.a]\nfamily = "videochat"\nworkers = 0', "models.a.workers: at least one worker is needed"),
        ('[models."a\\nb"]\nfamily = "videochat"', r"models.a\nb: 'a\nb' is no name"),
        ('[models.a]\nfamily = "videochat"\n"x\\ny" = 1', r"models.a.x\ny is not a key of a model"),
        ('"x\\r\\ny" = 1', r"'x\r\ny' is not a key of a model file"),
        ('[models.a]\nfamily = "videochat"\nmax_num_seqs = 0', "models.a.max_num_seqs: "),
        ('[models.a]\nfamily = "videochat"\neager = "yes"', "models.a.eager: "),
        ('[models."a/b"]\nfamily = "videochat"', "'a/b' is no name"),
    ],
)
def test_a_mistake_in_the_file_is_refused_with_its_place(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    refused = refusal(models=file)
    assert refused.startswith(f"REELTALK_MODELS: {file}")
    assert sentence in refused


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert refusal(models=tmp_path / "none.toml").endswith("none.toml cannot be read (No such file or directory).")


@pytest.mark.parametrize("flag", ["tiny", "tiny=videochat", "=videochat:", "tiny=moviechat:", "a b=videochat:"])
def test_a_malformed_flag_is_refused(flag: str) -> None:
    assert refusal(model=[flag]).startswith(f"REELTALK_MODEL: {flag!r}")


def test_a_model_that_sees_no_videos_needs_no_worker_that_encodes(file: Path) -> None:
    flags = ["reader=mobillama:", "tiny=videochat:"]
    assert refusal(model=flags, workers="generate").startswith("The settings: the model 'tiny' cannot have the workers")
    file.write_text('[models.reader]\nfamily = "mobillama"\nworkers = "generate"\n')
    assert names(load(models=file)) == ["reader*"]
    file.write_text('[models.reader]\nfamily = "mobillama"\nworkers = "encode,generate"\n')
    assert "models.reader.workers: a worker has the role encode" in refusal(models=file)


def test_models_that_exclude_each_other_are_refused(file: Path) -> None:
    assert refusal(model=["a=videochat:", "a=videochat:"]) == "The settings: two models have the name 'a'."
    file.write_text('[models.a]\nfamily="videochat"\ndefault=true\n[models.b]\nfamily="videochat"\ndefault=true')
    assert refusal(models=file) == "The settings: the models 'a' and 'b' are both marked as the default."
    assert "at most 64 workers" in refusal(model=["a=videochat:", "b=videochat:"], workers="33")
