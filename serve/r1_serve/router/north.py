"""North side over gRPC: ``r1.v1.Reasoning``. The same service as behind HTTP, without text formats around it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from importlib.metadata import version
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from r1_serve.errors import BodyTooLarge, ClientStalled, InternalError, InvalidRequest, R1Error
from r1_serve.protos import reasoning_pb2 as pb
from r1_serve.router import status
from r1_serve.router.call import Call, Event, Finished
from r1_serve.router.choice import Kind
from r1_serve.router.request_id import HEADER, request_id
from r1_serve.router.service import Service
from r1_serve.router.stall import Stall
from r1_serve.router.tenants import bearer
from r1_serve.router.usage import Usage
from r1_serve.router.validate import check

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Reasoning"].full_name


class Reasoning:
    def __init__(self, service: Service) -> None:
        self._service = service

    def handler(self) -> grpc.GenericRpcHandler:
        """For ``server.add_generic_rpc_handlers``. Chat decodes its bytes itself: bad ones are INVALID_ARGUMENT."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Chat": grpc.unary_stream_rpc_method_handler(
                    self.chat, response_serializer=pb.ChatEvent.SerializeToString
                ),
                "Models": grpc.unary_unary_rpc_method_handler(
                    self.models, pb.ModelsRequest.FromString, pb.ModelsResponse.SerializeToString
                ),
                "Status": grpc.unary_unary_rpc_method_handler(
                    self.status, pb.StatusRequest.FromString, pb.StatusResponse.SerializeToString
                ),
            },
        )

    async def chat(self, data: bytes, context: grpc.aio.ServicerContext) -> None:
        """Events as they come; under backpressure those that waited come merged."""
        sent = dict(context.invocation_metadata() or ())
        own_id = request_id(sent.get(HEADER))
        await context.send_initial_metadata(((HEADER, own_id),))
        try:
            try:
                request = check(_body(data, self._service.settings.max_body_bytes)).request()
            except R1Error as e:
                raise self._service.refused(e) from None
            call = await self._service.open(
                request, own_id, context.time_remaining(), _key(context), sent.get("traceparent")
            )
            try:
                with self._service.pace, Stall(self._service.settings.stall_s) as stall:
                    await self._stream(call, context, stall)
            except ClientStalled as e:
                call.fail(e)
                raise
            finally:
                call.cancel()
        except R1Error as e:
            await context.abort(e.grpc_status, e.message, trailers(e))
        except grpc.aio.AbortError:
            raise
        except Exception:
            logger.exception("request %s failed", own_id, extra={"request_id": own_id})
            hidden = InternalError(f"internal error; the router's log has more under request id {own_id}")
            await context.abort(hidden.grpc_status, hidden.message, trailers(hidden))

    async def _stream(self, call: Call, context: grpc.aio.ServicerContext, stall: Stall) -> None:
        now = asyncio.get_running_loop().time
        started = pb.Started(request_id=call.request_id, model=call.model.name, created_unix_s=call.created)
        await context.write(pb.ChatEvent(started=started))
        while events := await call.take():
            stall.since = now()  # a write waits for the client's window
            for event in events:
                await context.write(_message(event))
            stall.since = None
            if not call.ended:
                await self._service.pace.wait()
        context.set_trailing_metadata((("r1-route", call.route),))
        stall.since = now()
        await context.write(pb.ChatEvent(usage=_usage(call.usage())))

    async def models(self, _: pb.ModelsRequest, context: grpc.aio.ServicerContext) -> pb.ModelsResponse:
        return pb.ModelsResponse(
            models=[
                pb.Model(
                    id=model.name,
                    aliases=model.aliases,
                    max_model_len=model.max_model_len,
                    ready=self._service.ranks.ready(model.name),
                )
                for model in self._service.catalog.models.values()
            ]
        )

    async def status(self, _: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.StatusResponse:
        ranks = [
            pb.RankStatus(
                worker_id=rank.hello.worker_id,
                model=rank.hello.model,
                plan_name=rank.hello.plan_name,
                plan_hash=rank.hello.plan_hash,
                gang_id=rank.hello.gang_id,
                rank=rank.hello.rank,
                running=rank.load.running,
                waiting=rank.load.waiting,
                kv_usage=rank.load.kv_usage,
                draining=rank.draining,
            )
            for rank in self._service.ranks
        ]
        return pb.StatusResponse(version=version("r1-serve"), ready=self._service.ready, ranks=ranks)


def _key(context: grpc.aio.ServicerContext) -> str | None:
    sent = dict(context.invocation_metadata() or ())
    return bearer(sent.get("authorization")) or sent.get("x-api-key")


def _message(event: Event) -> pb.ChatEvent:
    if isinstance(event, Finished):
        thought = event.thought.value
        finished = pb.Finished(index=event.index, finish_reason=event.reason, thinking_finish_reason=thought)
        return pb.ChatEvent(finished=finished)
    delta = pb.Delta(index=event.index, text=event.text)
    return pb.ChatEvent(thinking=delta) if event.kind is Kind.THINKING else pb.ChatEvent(answer=delta)


def _usage(usage: Usage) -> pb.Usage:
    fields = dataclasses.asdict(usage)
    budget = fields.pop("thinking_budget")
    return pb.Usage(
        **fields,
        thinking_budget_asked=budget["asked"],
        thinking_budget_applied=budget["applied"],
        reasoning_effort=budget["effort"],
    )


def _body(data: bytes, limit: int) -> dict[str, Any]:
    """The message as the body its HTTP twin would have: same names, same validation. Raises InvalidRequest."""
    if len(data) > limit:
        raise BodyTooLarge(f"the request has {len(data)} bytes, at most {limit} are taken: shorten the messages")
    try:
        request = pb.ChatRequest.FromString(data)
    except DecodeError as e:
        raise InvalidRequest("not a ChatRequest, or text in it is not valid UTF-8") from e
    body: dict[str, Any] = {field.name: value for field, value in request.ListFields()}
    body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
    body["stop"] = list(request.stop)
    return body


def trailers(error: R1Error) -> tuple[tuple[str, str | bytes], ...]:
    """The error's particulars as trailing metadata, ASCII as gRPC demands, and as gRPC's own rich status."""
    named: list[tuple[str, str | bytes]] = [("r1-reason", error.reason), (status.KEY, status.status_details(error))]
    if error.field:
        named.append(("r1-field", error.field.encode("ascii", "backslashreplace").decode()))
    if error.retry_after is not None:
        named.append(("r1-retry-after", f"{error.retry_after:.3f}"))
    return tuple(named)
