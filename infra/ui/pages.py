"""The pages' frame: one HTML document for each, without any text from outside; scripts fill it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from aiohttp import web

PAGES = {
    "/": ("overview", "Overview"),
    "/rewards": ("rewards", "Rewards"),
    "/learning": ("learning", "Learning"),
    "/examples": ("examples", "Examples"),
    "/versions": ("versions", "Versions"),
    "/live": ("live", "Live"),
    "/search": ("search", "Search"),
    "/sql": ("sql", "SQL"),
}
HIDDEN = {"/example": ("example", "One group", "/examples")}
"""Pages that are reached from another one, which is marked in the menu."""

BASE: web.AppKey[str] = web.AppKey("base", str)
"""The path below which the pages lie; "" for a server of their own."""

CURRENT = ' aria-current="page"'
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".LICENSE": "text/plain"}


@cache
def frame(path: str, base: str = "") -> str:
    """Return the document of a page. base: the path below which the pages lie, such as "/ui"."""
    name, title = PAGES[path] if path in PAGES else HIDDEN[path][:2]
    marked = path if path in PAGES else HIDDEN[path][2]
    links = "".join(
        f'<li><a href="{base}{to}"{CURRENT if to == marked else ""}>{text}</a></li>' for to, (_, text) in PAGES.items()
    )
    return f"""<!doctype html>
<html lang="en" data-base="{base}"><head><meta charset="utf-8"><title>{title} – searchloop</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="{base}/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="{base}/static/vendor/uplot.css"><link rel="stylesheet" href="{base}/static/style.css">
<script src="{base}/static/vendor/uplot.js" defer></script>
<script src="{base}/static/main.js" type="module"></script></head>
<body data-page="{name}"><a class="skip" href="#main">Skip to the content</a>
<header><a class="brand" href="{base}/">searchloop</a><nav aria-label="Pages"><ul>{links}</ul></nav>
<div class="choose"><label for="run">Run</label> <select id="run"></select>
<span id="live" class="live" role="status"></span></div></header>
<main id="main" tabindex="-1"><h1>{title}</h1><noscript><p>These pages need scripts. Without them:
<code>searchloop report</code> and <code>searchloop watch</code>.</p></noscript></main>
</body></html>
"""


async def show(request: web.Request) -> web.Response:
    """Answer with the frame of a page."""
    base = request.app[BASE]
    return web.Response(text=frame(request.path.removeprefix(base), base), content_type="text/html")


@cache
def files() -> dict[str, tuple[bytes, str]]:
    """Return every static file by its path, with its type: nothing else can be asked for."""
    root = resources.files("infra.ui").joinpath("static")
    found = {}
    for folder, prefix in ((root, ""), (root.joinpath("vendor"), "vendor/")):
        for each in folder.iterdir():
            suffix = each.name[each.name.rfind(".") :]
            if each.is_file() and suffix in TYPES:
                found[prefix + each.name] = (each.read_bytes(), TYPES[suffix])
    return found


async def static(request: web.Request) -> web.Response:
    """Answer with a static file."""
    found = files().get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound(text="no such file")
    return web.Response(body=found[0], content_type=found[1], charset="utf-8", headers={"cache-control": "no-cache"})
