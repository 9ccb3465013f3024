"""The OpenAPI document: the framework's description of the routes, with the schemas of all bodies."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from chamfer.service.http.click_routes import ClicksAnswer, ClicksBody
from chamfer.service.http.rerank_requests import RerankBody, TeiBody
from chamfer.service.http.search_requests import BatchBody, SearchBody
from chamfer.service.http.search_responses import BatchAnswer, Problem, SearchAnswer

BODIES = (SearchBody, BatchBody, SearchAnswer, BatchAnswer, Problem, ClicksBody, ClicksAnswer, RerankBody, TeiBody)


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document, made once for each application."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, schemas = models_json_schema(
            [(model, "validation") for model in BODIES], ref_template="#/components/schemas/{model}"
        )
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
