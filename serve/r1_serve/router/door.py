"""Who may call ``Fleet.Attach``: checked before a message of the caller is read, counted where it is refused."""

from __future__ import annotations

import logging

import grpc

from r1_serve.errors import AlreadyAttached, AttachRefused, BadFrame, FleetTokenWrong, InternalError, R1Error
from r1_serve.fleet_token import METADATA_KEY, Source, check
from r1_serve.router.metrics import Metrics

logger = logging.getLogger(__name__)


class Door:
    """``token``: the fleet's, read anew for each caller."""

    def __init__(self, token: Source, metrics: Metrics) -> None:
        self._token = token
        self._refused = metrics.attach_refused
        for reason in (AttachRefused, AlreadyAttached, BadFrame, FleetTokenWrong):
            self._refused.labels(reason.reason)

    def check(self, context: grpc.aio.ServicerContext) -> None:
        """Raises FleetTokenWrong; InternalError where the token cannot be read, for then nobody can be let in."""
        try:
            token = self._token()
        except R1Error as e:
            logger.error("%s", e.message)
            raise InternalError("this router cannot read its fleet token: see its log") from e
        check(dict(context.invocation_metadata() or ()).get(METADATA_KEY), token)

    async def refuse(self, context: grpc.aio.ServicerContext, error: R1Error) -> None:
        """Log it, count it, tell it to the caller and end the call."""
        self._refused.labels(error.reason).inc()
        logger.warning("worker at %s refused: %s", context.peer(), error.message)
        await context.abort(error.grpc_status, error.message, (("r1-reason", error.reason),))
