"""`/docs`: the OpenAPI description as a page that runs no script and asks no other server."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: auto; padding: 1rem }
h2 code { font-size: 1rem } table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #8884; padding: .3rem .6rem .3rem 0; vertical-align: top }
td:first-child { white-space: nowrap } details { margin: .5rem 0 }
"""

Schema = Mapping[str, Any]


def add_reference(app: FastAPI) -> None:
    """Put the page at `/docs`."""

    @app.get("/docs", include_in_schema=False)
    def reference() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))


def page(api: Schema) -> str:
    """The whole page."""
    title = f"{api['info']['title']} {api['info']['version']}"
    operations = [
        operation(method, path, told, api)
        for path, methods in api["paths"].items()
        for method, told in methods.items()
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a></p>'
        + "".join(operations)
    )


def operation(method: str, path: str, told: Schema, api: Schema) -> str:
    """One method of one path."""
    named = [(p["name"], p["schema"], p["in"]) for p in told.get("parameters", [])]
    rows = "".join(row(name, schema, f"{where} ") for name, schema, where in named)
    body = told.get("requestBody", {}).get("content", {})
    for kind, content in body.items():
        fields = "".join(row(name, each) for name, each in fields_of(content["schema"], api))
        rows += f"<tr><td>body</td><td>{escape(kind)}</td></tr>{fields}"
    about = escape(told.get("description", ""))
    head = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{about}</p>"
    return head + (f"<table>{rows}</table>" if rows else "")


def fields_of(schema: Schema, api: Schema, before: str = "") -> Iterator[tuple[str, Schema]]:
    """Names and schemas of an object's fields, those of objects in it after theirs."""
    schema = resolved(schema, api)
    for name, field in schema.get("properties", {}).items():
        inner = resolved(field, api)
        yield before + name, {**inner, **field}
        if not before and "properties" in inner:
            yield from fields_of(inner, api, f"{name}.")


def resolved(schema: Schema, api: Schema) -> Schema:
    """What a reference stands for."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].rpartition("/")[2]
    found: Schema = api["components"]["schemas"][name]
    return found


def row(name: str, schema: Schema, where: str = "") -> str:
    """One line of a table: name, type, default, what it is."""
    text = where + kind_of(schema)
    default = schema.get("default")
    if default is not None and not isinstance(default, dict):
        text += f", {json.dumps(default)} where not given"
    about = escape(schema.get("description", ""))
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}<br>{about}</td></tr>"


def kind_of(schema: Schema) -> str:
    """A type in words."""
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return " | ".join(kind_of(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f" {sign} {schema[name]:g}" for name, sign in bounds.items() if name in schema]
    return str(schema.get("type", "any")) + ",".join(limits)
