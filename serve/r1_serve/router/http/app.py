"""The router's HTTP application: routes, request ids, and every error in OpenAI's shape."""

from __future__ import annotations

import logging
from typing import cast

import orjson
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1_serve.errors import InternalError, MethodNotAllowed, NotFound, R1Error
from r1_serve.router.http import anthropic, ollama
from r1_serve.router.http.chat import chat_completions
from r1_serve.router.http.errors import error_response
from r1_serve.router.http.shape import model_body
from r1_serve.router.request_id import HEADER, request_id
from r1_serve.router.service import Service
from r1_serve.router.siblings import Siblings

logger = logging.getLogger(__name__)


def application(service: Service, siblings: Siblings | None = None) -> Starlette:
    """``siblings``: the other processes of this router, for /metrics of all."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/messages", anthropic.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=["POST"]),
            Route("/api/chat", ollama.chat, methods=["POST"]),
            Route("/api/generate", ollama.generate, methods=["POST"]),
            Route("/api/tags", ollama.tags, methods=["GET"]),
            Route("/api/show", ollama.show, methods=["POST"]),
            Route("/api/version", ollama.about, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{name:path}", model, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            *([Route("/debug/routing", routing, methods=["GET"])] if service.settings.debug_routing else []),
        ],
        middleware=[Middleware(_Outermost)],
        exception_handlers={R1Error: _refused, HTTPException: _no_route},
    )
    app.state.service = service
    app.state.siblings = siblings
    return app


class _Outermost:
    """Gives each request an id, in the response and in the log of what went wrong; shows no stack trace to anyone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER.encode())
        own_id = request_id(given)
        scope.setdefault("state", {})["request_id"] = own_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(raw=message["headers"])[HEADER] = own_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return
        except Exception:
            logger.exception("request %s failed", own_id, extra={"request_id": own_id})
            if not started:
                error = InternalError(f"internal error; the router's log has more under request id {own_id}")
                await _response(scope, error)(scope, receive, send_with_id)


def _response(scope: Scope, error: R1Error) -> Response:
    """In the words of the API whose path this is."""
    path: str = scope["path"]
    if path.startswith("/api/"):
        return ollama.error_response(error)
    return anthropic.error_response(error) if path.startswith("/v1/messages") else error_response(error)


async def _refused(request: Request, error: Exception) -> Response:
    return _response(request.scope, cast(R1Error, error))


async def _no_route(request: Request, error: Exception) -> Response:
    found = cast(HTTPException, error)
    if found.status_code == 405:
        allowed = (found.headers or {}).get("Allow", "another method")
        response = _response(request.scope, MethodNotAllowed(f"use {allowed} on {request.url.path[:200]}"))
        response.headers["allow"] = allowed
        return response
    where = "chat is at /v1/chat/completions, /v1/messages and /api/chat"
    return _response(request.scope, NotFound(f"nothing at {request.url.path[:200]}: {where}"))


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def models(request: Request) -> Response:
    """Every name a request may use, aliases included."""
    catalog = request.app.state.service.catalog
    named = [model_body(m, name) for m in catalog.models.values() for name in (m.name, *m.aliases)]
    if "anthropic-version" in request.headers:
        return _json(anthropic.model_bodies(named))
    return _json({"object": "list", "data": named})


async def model(request: Request) -> Response:
    name = request.path_params["name"]
    return _json(model_body(request.app.state.service.catalog.resolve(name), name))


async def health(request: Request) -> Response:
    """200 as long as the process serves at all."""
    return _json({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 when each model has at least one whole gang, else 503."""
    service: Service = request.app.state.service
    state = {
        "ready": service.ready,
        "stopping": service.stopping,
        "models": {
            name: {"ready": service.ranks.ready(name), "ranks": len(service.ranks.of(name))}
            for name in service.catalog.models
        },
    }
    return _json(state, 200 if service.ready else 503)


async def routing(request: Request) -> Response:
    """The last picks and refusals of each model, newest first, with what decided them. No prompt is in here."""
    service: Service = request.app.state.service
    return _json(
        {
            name: {
                "queued": service.desk.queued(name),
                "recent": [each.as_dict() for each in service.desk.recent(name)],
            }
            for name in service.catalog.models
        }
    )


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    siblings: Siblings | None = request.app.state.siblings
    if siblings is not None:
        return Response(await siblings.metrics(), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(service.metrics.registry), headers={"content-type": content_type})
