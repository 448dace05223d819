"""Serves the page at `/` and its files below `/page/`. Nothing else of this folder can be reached."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parent
FILES = {
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
    **{
        f"{script}.js": "text/javascript"
        for script in ("page", "elements", "server", "words", "composer", "videos", "gallery", "player")
    },
}
# Scripts and styles are files of ours alone. Previews are data URLs; with a token, videos and thumbnails are blobs.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-cache",  # after an update, a browser asks again
}


def page_routes() -> APIRouter:
    """Returns the routes of the page. They need no token: the page asks for it, and holds no one's data."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def index() -> FileResponse:
        return FileResponse(FOLDER / "index.html", media_type="text/html", headers=HEADERS)

    @routes.get("/page/{name}")
    def file(name: str) -> FileResponse:
        if name not in FILES:
            raise HTTPException(404, f"the page has no file {name!r}")
        return FileResponse(FOLDER / name, media_type=FILES[name], headers=HEADERS)

    return routes
