"""The tenants file: read at start, again when it changes; a faulty new version is logged and the last good one kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from r1_cluster.reading import read_text
from r1_cluster.routing.tenants import Tenant, Tenants, TenantsError

from r1_serve.errors import StartupError, UnknownKey

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class TenantsFile:
    """Without a path there is one tenant, ``default``, whatever the key.

    The file is looked at when a request comes, at most once a second: by time of change, size and inode, so a file that
    is replaced (a Kubernetes ConfigMap) is seen too.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises StartupError where the file cannot be used: a router must not start with nobody's limits."""
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._seen: tuple[int, int, int] | None = None
        self._tenants = Tenants.single()
        if path is not None:
            try:
                self._seen = _identity(path)
                self._tenants = _read(path)
            except (OSError, TenantsError) as e:
                raise StartupError(f"R1_TENANTS: {_text(path, e)}") from e

    @property
    def current(self) -> Tenants:
        now = self._clock()
        if self._path is not None and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look(self._path)
        return self._tenants

    def of_key(self, key: str | None) -> Tenant:
        """Raises UnknownKey."""
        tenant = self.current.of_key(key)
        if tenant is None:
            raise UnknownKey(
                "this API key belongs to no tenant: check it" if key else "give an API key: Authorization: Bearer KEY"
            )
        return tenant

    def _look(self, path: Path) -> None:
        try:
            identity = _identity(path)
            if identity == self._seen:
                return
            self._seen = identity
            self._tenants = _read(path)
        except (OSError, TenantsError) as e:
            logger.error("tenants stay as they were: %s", _text(path, e))
        else:
            logger.info("tenants read again: %s", ", ".join(tenant.name for tenant in self._tenants.tenants))


def bearer(authorization: str | None) -> str | None:
    """The key in an Authorization header, or None."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> Tenants:
    source = str(path)
    return Tenants.from_yaml(read_text(path, source=source, error=TenantsError), source)


def _text(path: Path, error: Exception) -> str:
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
