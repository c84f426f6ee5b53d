"""What a family takes is known before its code is loaded."""

import subprocess
import sys

import pytest

from model.families import family_names, load_family
from model.modalities import sees_videos


@pytest.mark.parametrize("name", family_names())
def test_the_package_of_a_family_says_what_the_loaded_model_says(name: str) -> None:
    assert ("video" in load_family(name).modalities) == sees_videos(name)


def test_mobillama_sees_no_videos_and_videochat_does() -> None:
    assert not sees_videos("mobillama")
    assert sees_videos("videochat")


@pytest.mark.parametrize("name", ["", "videochat2", "a.b", "../videochat"])
def test_an_unknown_family_is_left_to_the_worker_to_refuse(name: str) -> None:
    assert sees_videos(name)


def test_no_code_of_a_model_is_loaded() -> None:
    code = "import sys; from model.modalities import *; sees_videos('mobillama'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
