"""`/`: the chat page and the sample clips, as static files of this package."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

_WEB = Path(__file__).parent.parent / "web"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidate by ETag: modules of two releases must not be mixed
}

router = APIRouter(include_in_schema=False)


class _PageFiles(StaticFiles):
    """Static files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


@router.get("/", response_class=FileResponse)
async def page() -> FileResponse:
    """The chat page."""
    return FileResponse(_WEB / "index.html", headers=_HEADERS)


def mount_static_files(app: FastAPI) -> None:
    """Serve the page's scripts, styles and sample videos under `/static`."""
    app.mount("/static", _PageFiles(directory=_WEB), name="static")
