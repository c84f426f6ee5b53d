"""The committed OpenAPI document is equal to the app's."""

from service.commands.openapi import CONTRACT, document


def test_the_committed_contract_is_the_app_s() -> None:
    assert CONTRACT.read_text(encoding="utf-8") == document(), "run `python -m service.commands.openapi`"
