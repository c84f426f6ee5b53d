"""Write the OpenAPI document of the app to openapi/openapi.json: `python -m service.commands.openapi [FILE]`."""

import json
import sys
from pathlib import Path

from service.app import create_app
from service.settings import Settings

CONTRACT = Path(__file__).parents[2] / "openapi" / "openapi.json"


def document() -> str:
    """The OpenAPI document of the app in the form in which it is committed."""
    contract = create_app(Settings(), redis_url="redis://localhost").openapi()
    return json.dumps(contract, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else CONTRACT
    target.write_text(document(), encoding="utf-8")
