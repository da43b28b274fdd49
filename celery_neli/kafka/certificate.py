"""Find out with Python's own TLS why a broker's certificate is not accepted, which librdkafka does not say."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

from celery_neli.kafka.causes import Cause, untrusted
from celery_neli.threads import original

__all__ = ["look"]

TIMEOUT: Final = 2.0


def look(where: str, properties: Mapping[str, Any]) -> Cause | None:
    """Connect to the broker at `where` ("host:port") and return why its certificate is refused; None if it is not, or
    if that cannot be found out. Sends nothing but the beginning of a TLS handshake. Blocks for two seconds or so; any
    thread.
    """
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    try:
        context = _context(properties)
        connection = original("socket", "create_connection")((host, int(port)), TIMEOUT)
        with connection, context.wrap_socket(connection, server_hostname=host):
            return None
    except ssl.SSLCertVerificationError as error:
        return untrusted(where, error.verify_code, error.verify_message, properties)
    except (OSError, ValueError):
        return None  # the broker is gone, or refuses us for another reason


def _context(properties: Mapping[str, Any]) -> ssl.SSLContext:
    """Return a context that trusts the same CAs as librdkafka does."""
    location, pem = properties.get("ssl.ca.location"), properties.get("ssl.ca.pem")
    if pem:
        context = ssl.create_default_context(cadata=str(pem))
    elif location and location != "probe":
        context = ssl.create_default_context(cafile=str(location))
    else:
        context = ssl.create_default_context()
    if str(properties.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
        context.check_hostname = False
    return context
