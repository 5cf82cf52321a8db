"""The secret by which a router knows its ranks: sent as metadata of ``Fleet.Attach``, compared before anything is read.

Without it whoever reaches the gRPC port can attach as a worker and be given prompts.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable

from r1_serve.errors import FleetTokenWrong, StartupError
from r1_serve.settings import FleetSettings

METADATA_KEY = "x-r1-fleet-token"
_SHAPE = re.compile(r"[\x21-\x7e]{16,512}")

# The token now, or None where the fleet has none. Raises StartupError where it cannot be read.
Source = Callable[[], str | None]


def source(settings: FleetSettings) -> Source:
    """Reads the token, once now and then whenever it is asked for: a file may be replaced. Raises StartupError."""

    def read() -> str | None:
        if settings.fleet_token is not None:
            return _checked(settings.fleet_token.get_secret_value(), "R1_FLEET_TOKEN")
        file = settings.fleet_token_file
        if file is None:
            return None
        try:
            return _checked(file.read_text(encoding="utf-8").strip(), f"R1_FLEET_TOKEN_FILE {file}")
        except (OSError, UnicodeDecodeError) as e:
            raise StartupError(f"R1_FLEET_TOKEN_FILE: cannot read {file}: {getattr(e, 'strerror', None) or e}") from e

    read()
    return read


def _checked(token: str, where: str) -> str:
    if not _SHAPE.fullmatch(token):
        raise StartupError(
            f"{where}: a fleet token is 16 to 512 visible ASCII characters: make one with `openssl rand -hex 32`"
        )
    return token


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """What a rank sends with ``Attach``."""
    return () if token is None else ((METADATA_KEY, token),)


def check(sent: str | bytes | None, token: str | None) -> None:
    """Whether a caller that ``sent`` this belongs to the fleet of ``token``. Raises FleetTokenWrong."""
    if token is None:
        return
    given = sent.encode() if isinstance(sent, str) else sent or b""
    if not hmac.compare_digest(given, token.encode()):
        what = "another" if given else "no"
        raise FleetTokenWrong(
            f"the worker sent {what} fleet token: give routers and workers the same R1_FLEET_TOKEN or "
            "R1_FLEET_TOKEN_FILE"
        )
