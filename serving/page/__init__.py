"""The page at ``/``: one can choose what to draw and by which rule, and watch it draw; nothing of it comes from elsewhere."""

from pathlib import Path

from fastapi import FastAPI, Response

FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_routes(app: FastAPI) -> None:
    """The page and the files that it names, read once: no path of a request ever becomes one of a file."""
    folder = Path(__file__).parent
    _add(app, "/", (folder / "index.html").read_bytes(), "text/html")
    for name, kind in FILES.items():
        _add(app, f"/page/{name}", (folder / name).read_bytes(), kind)


def _add(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def static() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    app.add_api_route(path, static, include_in_schema=False, methods=["GET", "HEAD"])
