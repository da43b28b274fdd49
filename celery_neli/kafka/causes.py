"""Why Kafka does not work: what librdkafka says, as a reason and a remedy that an operator can act on.

Only this file knows librdkafka's texts. They are those of librdkafka 2.16 against Apache Kafka 4.3; others are passed
on. Pure, but for `examine`, which asks a broker for its certificate.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from celery_neli.printable import HIDDEN, closest, is_secret, printable
from celery_neli.threads import original

AWAY: Final = "away"  # the key of every cause that may go away by itself: brokers are down, or out of reach

# About the group of a client that only reads and writes: librdkafka looks for a coordinator all the same.
OF_NO_READER: Final = frozenset({"GROUP_AUTHORIZATION_FAILED", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR"})
# Of a client whose topic may have been deleted: brokers must be asked.
GONE: Final = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "UNKNOWN_TOPIC_ID"})
EXAMINE: Final = 2.0  # seconds that a broker has to show its certificate

DENIED: Final = frozenset({"TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED"})
_STATE = re.compile(r" \(after \d+ms in state (\w+)\)")
_REPEATED = re.compile(r"[,:]? ?\(?\d+ identical error\(s\) suppressed\)?", re.IGNORECASE)
_FAIL = re.compile(r"^FAIL \[[^\]]*\](?: \[thrd:.*?\])?:? ?")
_PLACE = re.compile(r"^(?:(?:\w+://)?GroupCoordinator(?:/\w+)?: )?(?:\w+://)?(?P<place>[^\s/]+)(?:/\w+)?: ")
_UNKNOWN = re.compile(r'No such configuration property: "(?P<name>[^"]*)"')
_NAMED = re.compile(r'(?:property|for) "(?P<name>[a-z0-9_.]+)"|[`\'"]?(?P<other>[a-z]+(?:\.[a-z0-9]+)+)[`\'"]?')
_MECHANISMS = re.compile(r"supported mechanisms: ?(?P<names>[^)]*)")
_FILE = re.compile(r"^(?:ssl|sasl|https)\..*\.(?:location|file)$")
_ALERT = re.compile(
    r"alert (?:bad certificate|unsupported certificate|certificate \w+|unknown ca|access denied)", re.IGNORECASE
)
_CIPHER = re.compile(r"alert (?:handshake failure|protocol version)|no protocols available|no shared cipher")
# OpenSSL's verification results, the end of the cause's key, what is wrong with the certificate, and the remedy.
_UNTRUSTED: tuple[tuple[Collection[int], str, str, str], ...] = (
    ((10,), "expired", "has expired", "renew it on the broker"),
    ((9,), "early", "is not valid yet", "check this host's clock and the broker's"),
    (
        (62, 64), "host", "is made out to another host",
        "use a name that is in it, in bootstrap.servers and in the brokers' advertised.listeners",
    ),
    (
        (2, 18, 19, 20, 21), "issuer", "is not signed by the CA in ssl.ca.location ({ca})",
        "give the certificate of the brokers' CA",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cause:
    """Why brokers cannot be used. `key` is the kind of cause; `where` is the broker's "host:port" if `examine` can say
    more. `guess`: a proxy without a broker behind it may look the same.
    """

    key: str
    reason: str
    remedy: str
    where: str = ""
    guess: bool = False

    @property
    def lasting(self) -> bool:
        """Return True if somebody must change something before it works."""
        return self.key != AWAY

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}" if self.remedy else self.reason


def of_connection(text: str, properties: Mapping[str, Any]) -> Cause | None:
    """Return why a connection failed, from librdkafka's log line or error `text`; None if the text does not say."""
    text = _REPEATED.sub("", _FAIL.sub("", text)).strip()
    state = _STATE.search(text)
    bare = _STATE.sub("", text)
    place = _PLACE.match(bare)
    words = bare[place.end() :] if place else bare
    where = place["place"] if place else servers_of(properties)
    if (found := _of_login(words, where, properties) or _of_tls(words, where, properties)) is not None:
        return found
    protocol, closed = _protocol(properties), state[1] if state and "Disconnected" in words else ""
    if closed.startswith("APIVERSION") and "ssl" not in protocol:
        with_tls = "SASL_SSL" if protocol.startswith("sasl") else "SSL (with a login: SASL_SSL)"
        return Cause(
            "plaintext",
            f"{where} closes the connection at the first request, as a port for TLS does",
            f"set security.protocol, which is {protocol}, to {with_tls}, or use the port for {protocol}",
            guess=True,
        )
    if closed == "UP" and not protocol.startswith("sasl"):
        return Cause(
            "no login",
            f"{where} closes the connection at the first request without a login",
            f"set security.protocol, which is {protocol}, to {'SASL_SSL' if protocol == 'ssl' else 'SASL_PLAINTEXT'}, "
            "sasl.mechanism, sasl.username and sasl.password, or use a port without SASL",
            guess=True,
        )
    if "resolve" in words:
        return Cause("host", f"{where}: {words}", "check the spelling in bootstrap.servers, and this host's DNS")
    remedy = ""
    if "refused" in words:
        remedy = "check that Kafka runs there, and bootstrap.servers"
    elif re.search("timed out|No route|unreachable", words, re.IGNORECASE):
        remedy = "check bootstrap.servers, and firewalls on the way"
    return Cause(AWAY, f"{where}: {words}", remedy) if words else None


def _of_login(words: str, where: str, properties: Mapping[str, Any]) -> Cause | None:
    mechanism = _mechanism(properties)
    if "OAUTHBEARER token" in words:
        return Cause("token", printable(words), "check sasl.oauthbearer.config and the server that gives the tokens")
    if "Request not valid in current SASL state" in words:
        return Cause(
            "needless login",
            f"{where} takes no login",
            "set security.protocol to SSL (PLAINTEXT without TLS), or use the port for SASL",
        )
    if "Unsupported SASL mechanism" in words:
        offered = _MECHANISMS.search(words)
        known = f", only {printable(offered['names'].strip())}" if offered and offered["names"].strip() else ""
        return Cause(
            "mechanism",
            f"{where} does not know the mechanism {mechanism}{known}",
            "set sasl.mechanism to one that it knows",
        )
    if "SASL" not in words and "authentication" not in words.lower():
        return None
    if re.search("invalid credentials|Invalid username|Authentication failed", words, re.IGNORECASE):
        return Cause(
            "login",
            f"{where} refuses {_who(properties)} or the password ({mechanism})",
            f"check sasl.username and sasl.password, and that Kafka knows this user for {mechanism}",
        )
    return Cause("login", f"{where}: {printable(words)}", "check the sasl properties")


def _of_tls(words: str, where: str, properties: Mapping[str, Any]) -> Cause | None:
    protocol = _protocol(properties)
    if "PLAINTEXT broker listener" in words or "wrong version number" in words:
        return Cause(
            "tls",
            f"{where} does not speak TLS",
            f"set security.protocol, which is {protocol}, to {protocol.replace('ssl', 'plaintext').upper()}, "
            "or use the port for TLS",
            guess="Disconnected" in words,
        )
    if "certificate verify failed" in words:
        return Cause(
            "certificate",
            f"the certificate of {where} is not trusted",
            f"check ssl.ca.location ({_ca(properties)}), the dates of the certificate and the host names in it",
            where,
        )
    if _ALERT.search(words):
        return Cause(
            "client certificate",
            f"{where} does not accept this client's certificate, or misses one",
            "set ssl.certificate.location and ssl.key.location to a certificate of a CA that the brokers trust",
        )
    if _CIPHER.search(words):
        return Cause("cipher", f"{where}: {printable(words)}", "check ssl.cipher.suites and the brokers' TLS versions")
    if "SSL handshake failed" in words:
        return Cause("handshake", f"{where}: {printable(words)}", "check security.protocol and the ssl properties")
    return None


def untrusted(where: str, code: int, message: str, properties: Mapping[str, Any]) -> Cause:
    """Return why the certificate of the broker at `where` was not accepted, from OpenSSL's verification result."""
    for codes, key, what, remedy in _UNTRUSTED:
        if code in codes:
            return Cause(f"certificate {key}", f"the certificate of {where} {what.format(ca=_ca(properties))}", remedy)
    return Cause("certificate", f"the certificate of {where} is refused: {message}", f"check it and {_ca(properties)}")


def examine(where: str, properties: Mapping[str, Any]) -> Cause | None:
    """Return why the certificate of the broker at `where` ("host:port") is refused, which librdkafka does not say; None
    if it is not, or if that cannot be found out. Python's own TLS begins a handshake, with the CAs that librdkafka
    trusts. Blocks for two seconds or so; any thread.
    """
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    location, pem = properties.get("ssl.ca.location"), properties.get("ssl.ca.pem")
    file = str(location) if location and location != "probe" else None
    try:
        context = ssl.create_default_context(cadata=str(pem)) if pem else ssl.create_default_context(cafile=file)
        if str(properties.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
            context.check_hostname = False
        connection = original("socket", "create_connection")((host, int(port)), EXAMINE)
        with connection, context.wrap_socket(connection, server_hostname=host):
            return None
    except ssl.SSLCertVerificationError as error:
        return untrusted(where, error.verify_code, error.verify_message, properties)
    except (OSError, ValueError):
        return None  # the broker is gone, or refuses us for another reason


def missing_right(properties: Mapping[str, Any], operations: Collection[str], kind: str, name: str) -> str:
    """Return the sentence for missing rights, named as `kafka-acls.sh` does. `kind`: "topic" or "group"."""
    user = properties.get("sasl.username")
    principal = printable(user) if user else "<user>"
    flags = " ".join(f"--operation {each}" for each in operations)
    return (
        f"{_who(properties)} lacks the right {' and '.join(operations)} on the {kind} {name}: kafka-acls.sh "
        f"--bootstrap-server {servers_of(properties)} --add --allow-principal User:{principal} {flags} --{kind} {name}"
    )


def refused(
    text: str, properties: Mapping[str, Any], *, names: Callable[[], Iterable[str]], readable: Callable[[str], bool]
) -> str:
    """Return why librdkafka made no client, naming the property and what to do. `names` returns those that it knows."""
    text = re.sub(r"^Failed to create [a-z ]+: ", "", " ".join(text.split()))
    for name, value in properties.items():
        if isinstance(value, str) and _FILE.match(name) and value not in ("probe", "") and not readable(value):
            return f"neli_kafka has {name} = {value!r}, a file that cannot be read: give the path of one that can"
    if (unknown := _UNKNOWN.search(text)) is not None:
        meant = closest(unknown["name"], names())
        name = printable(unknown["name"])
        return f"neli_kafka has {name!r}, which is not a property of librdkafka; did you mean {meant}?"
    if "sasl.username and sasl.password must be set" in text:
        lacking = [each for each in ("sasl.username", "sasl.password") if not properties.get(each)]
        return f"neli_kafka lacks {' and '.join(lacking)}: the mechanism {_mechanism(properties)} needs both"
    if "Unsupported hash function" in text or "No provider for SASL mechanism" in text:
        return (
            f"neli_kafka has sasl.mechanism = {_mechanism(properties)}, which this librdkafka does not have: use "
            "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
        )
    named = _NAMED.search(text)
    name = str(named["name"] or named["other"]) if named else ""
    if name in properties:
        shown = HIDDEN if is_secret(name) else printable(repr(properties[name]))
        return f"neli_kafka has {name} = {shown}, which librdkafka refuses: {printable(text)}"
    return f"neli_kafka is refused by librdkafka: {printable(text)}"


def _mechanism(properties: Mapping[str, Any]) -> str:
    return printable(properties.get("sasl.mechanism", properties.get("sasl.mechanisms", "GSSAPI")))


def _protocol(properties: Mapping[str, Any]) -> str:
    return str(properties.get("security.protocol", "plaintext")).lower()


def servers_of(properties: Mapping[str, Any]) -> str:
    """Return the bootstrap servers."""
    return str(properties.get("bootstrap.servers", ""))


def _who(properties: Mapping[str, Any]) -> str:
    user = properties.get("sasl.username")
    return f"the user {printable(user)}" if user else "this client"


def _ca(properties: Mapping[str, Any]) -> str:
    if properties.get("ssl.ca.pem"):
        return "ssl.ca.pem is set instead"
    return printable(properties.get("ssl.ca.location") or "not set: the system's own CAs")
