"""The page that a person sees: what the API has, read off its OpenAPI document. One piece of HTML, nothing besides: no
script, and nothing that is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["page_of"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { font: 600 15px/1.5 ui-monospace, monospace; margin: 2rem 0 .3rem; border-top: 1px solid #ddd; padding-top: 1rem }
b { display: inline-block; min-width: 4.5em } table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0;
vertical-align: top } code { font: 14px ui-monospace, monospace } @media (prefers-color-scheme: dark) { body {
background: #16181c; color: #ddd } h2 { border-color: #333 } a { color: #8ab4f8 } }
"""


def page_of(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as a page."""
    info = document["info"]
    body = "\n".join(_operations(document))
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>ckpt API</title>'
        f"<style>{_STYLE}</style>\n<h1>{escape(info['title'])}</h1>\n<p>{escape(info.get('description', ''))}</p>\n"
        f'<p><a href="/api/v1/openapi.json">openapi.json</a></p>\n{body}\n</html>\n'
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><b>{escape(method.upper())}</b>{escape(path)}</h2>"
            yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
            rows = "".join(_parameter(each) for each in operation.get("parameters", ()))
            if rows:
                yield f"<table>{rows}</table>"
            for kind in operation.get("requestBody", {}).get("content", ()):
                yield f"<p>A body of <code>{escape(kind)}</code>.</p>"


def _parameter(parameter: Mapping[str, Any]) -> str:
    needed = "needed" if parameter.get("required") else ""
    said = escape(parameter.get("description", ""))
    return f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{needed}</td><td>{said}</td></tr>"
