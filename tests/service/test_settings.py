"""An invalid configuration is refused with one sentence that names the setting."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.settings import PREFIX, Settings, SettingsError, check_default_checkpoint, load_settings


def refusal(**environ: str) -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings(environ={PREFIX + name: value for name, value in environ.items()})
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")
    return str(refused.value)


def test_the_defaults_listen_on_loopback_only() -> None:
    settings = load_settings(environ={"PATH": "/bin"})
    assert settings == Settings()
    assert settings.host == "127.0.0.1"
    assert settings.redis_url is None
    [model] = settings.model_specs
    assert (model.name, model.family, model.is_default) == ("tiny", "videochat", True)


def test_the_command_line_overrides_the_environment_and_the_environment_the_defaults(tmp_path: Path) -> None:
    environ = {"REELTALK_PORT": "1", "REELTALK_WORKERS": "3", "REELTALK_DATA_DIR": str(tmp_path)}
    settings = load_settings({"port": 2, "workers": None, "data_dir": None}, environ=environ)
    assert (settings.port, len(settings.worker_specs), settings.max_num_seqs) == (2, 3, 32)
    assert settings.media_path == tmp_path / "media"


def test_a_model_that_sees_no_videos_needs_no_worker_that_encodes() -> None:
    environ = {"REELTALK_FAMILY": "mobillama", "REELTALK_WORKERS": "generate*2"}
    assert [spec.role for spec in load_settings(environ=environ).worker_specs] == ["generate", "generate"]
    assert "no worker encodes videos" in refusal(FAMILY="videochat", WORKERS="generate*2")
    assert "the model sees no videos" in refusal(FAMILY="mobillama", WORKERS="encode,generate")


def test_a_default_model_without_a_folder_is_refused_and_another_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    here, odd = f"a=videochat:{tmp_path / 'here'}", "b=videochat:,"
    for fine in ([here, odd], ["b=videochat:", here]):
        check_default_checkpoint(load_settings({"model": fine}, environ={}))
    with pytest.raises(SettingsError) as refused:
        check_default_checkpoint(load_settings({"model": [odd, here]}, environ={}))
    assert str(refused.value) == "The default model 'b' cannot be loaded: there is no folder ','."


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert str(SettingsError("a\nb\x1b é \udce4")) == r"a\nb\x1b é \udce4"


def test_a_device_that_is_none_is_refused_by_name() -> None:
    assert refusal(DEVICE="tpu") == "REELTALK_DEVICE: there is no device 'tpu'; write auto, cpu, cuda or cuda:N."


def test_a_misspelt_variable_is_refused_by_name() -> None:
    assert "REELTALK_MAX_UPLOAD_BITES is not a setting" in refusal(MAX_UPLOAD_BITES="5")


def test_an_empty_value_stands_for_the_default() -> None:
    names = {PREFIX + name.upper(): "" for name in Settings.model_fields}
    assert load_settings(environ=names) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("WORKERS", "0"),
        ("WORKERS", "1.5"),
        ("MAX_NUM_SEQS", "0"),
        ("MAX_FRAME_COUNT", "100000"),
        ("DECODE_TIMEOUT", "0"),
        ("DISCONNECT_GRACE", "-1"),
        ("LEASE_SECONDS", "0.1"),
        ("LEASE_SECONDS", "inf"),
        ("ANSWER_TIMEOUT", "inf"),
        ("ANSWER_TIMEOUT", "nan"),
        ("DTYPE", "int8"),
        ("QUANTIZE", "int2"),
        ("LOG_LEVEL", "chatty"),
        ("ALLOW_UNAUTHENTICATED", "perhaps"),
        ("REDIS_URL", "localhost:6379"),
    ],
)
def test_an_invalid_value_is_refused_by_name(name: str, value: str) -> None:
    assert refusal(**{name: value}).startswith(f"REELTALK_{name}: ")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "127.0.0.1.example.org"])  # noqa: S104
def test_beyond_loopback_requests_without_a_key_must_be_allowed_explicitly(host: str) -> None:
    assert not load_settings(environ={"REELTALK_HOST": host}).may_be_open
    environ = {"REELTALK_HOST": host, "REELTALK_ALLOW_UNAUTHENTICATED": "true"}
    assert load_settings(environ=environ).may_be_open


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_on_loopback_requests_need_no_key(host: str) -> None:
    assert load_settings(environ={"REELTALK_HOST": host}).may_be_open


def test_a_password_in_a_url_is_not_shown() -> None:
    settings = load_settings(environ={"REELTALK_REDIS_URL": "redis://:hunter2@store:6379/0"})
    assert isinstance(settings.redis_url, SecretStr)
    assert "hunter2" not in repr(settings) + str(settings)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
