"""What librdkafka says about Kafka's troubles becomes a reason and a remedy: the texts are those of librdkafka 2.16
against Apache Kafka 4.3, as `tests/smoke/test_secured.py` meets them.
"""

from __future__ import annotations

import pytest

from celery_neli.kafka.causes import missing_right, of_connection, refused, untrusted

SERVERS = {"bootstrap.servers": "k:9093"}
SCRAM = {
    **SERVERS,
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "shop",
    "sasl.password": "hunter22",
    "ssl.ca.location": "/etc/ca.pem",
}
PLACE = "sasl_ssl://k:9093/bootstrap: "
VERIFY = (
    "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be "
    "verified, verify that ssl.ca.location is correctly configured or root CA certificates are installed (install "
    "ca-certificates package) (after 3ms in state SSL_HANDSHAKE)"
)

CONNECTIONS = [
    (
        SCRAM,
        (
            "SASL authentication error: Authentication failed during authentication due to invalid credentials with "
            "SASL mechanism SCRAM-SHA-512 (after 311ms in state AUTH_REQ)"
        ),
        "login",
        "k:9093 refuses the user shop or the password (SCRAM-SHA-512)",
        "sasl.password",
    ),
    (
        {**SCRAM, "sasl.mechanism": "PLAIN"},
        "SASL authentication error: Authentication failed: Invalid username or password (after 3ms in state AUTH_REQ)",
        "login",
        "k:9093 refuses the user shop or the password (PLAIN)",
        "sasl.username",
    ),
    (
        {**SCRAM, "sasl.mechanism": "SCRAM-SHA-256"},
        (
            "SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported "
            "mechanisms: PLAIN,SCRAM-SHA-512 (after 301ms in state AUTH_HANDSHAKE)"
        ),
        "mechanism",
        "k:9093 does not know the mechanism SCRAM-SHA-256, only PLAIN,SCRAM-SHA-512",
        "sasl.mechanism",
    ),
    (
        SCRAM,
        (
            "SASL SCRAM-SHA-512 mechanism handshake failed: Broker: Request not valid in current SASL state: broker's "
            "supported mechanisms:  (after 1ms in state AUTH_HANDSHAKE)"
        ),
        "needless login",
        "k:9093 takes no login",
        "security.protocol to SSL",
    ),
    (SCRAM, VERIFY, "certificate", "the certificate of k:9093 is not trusted", "ssl.ca.location (/etc/ca.pem)"),
    (
        SCRAM,
        (
            "SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker "
            "listener? (after 104ms in state SSL_HANDSHAKE)"
        ),
        "tls",
        "k:9093 does not speak TLS",
        "set security.protocol, which is sasl_ssl, to SASL_PLAINTEXT",
    ),
    (
        {**SERVERS, "security.protocol": "ssl"},
        (
            "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert number 42 (after "
            "0ms in state APIVERSION_QUERY)"
        ),
        "client certificate",
        "k:9093 does not accept this client's certificate, or misses one",
        "ssl.certificate.location and ssl.key.location",
    ),
    (
        SERVERS,
        "Disconnected: connection closed by peer: receive 0 after POLLIN (after 1ms in state APIVERSION_QUERY)",
        "plaintext",
        "k:9093 closes the connection at the first request, as a port for TLS does",
        "set security.protocol, which is plaintext, to SSL",
    ),
    (
        {**SERVERS, "security.protocol": "SASL_PLAINTEXT"},
        "Disconnected: connection closed by peer: receive 0 after POLLIN (after 1ms in state APIVERSION_QUERY)",
        "plaintext",
        "as a port for TLS does",
        "to SASL_SSL",
    ),
    (
        SERVERS,
        "Disconnected: connection closed by peer: receive 0 after POLLIN (after 1ms in state UP)",
        "no login",
        "k:9093 closes the connection at the first request without a login",
        "to SASL_PLAINTEXT, sasl.mechanism, sasl.username and sasl.password",
    ),
    (
        {**SERVERS, "security.protocol": "SSL"},
        "Disconnected: SSL connection closed by peer (after 0ms in state UP)",
        "no login",
        "without a login",
        "to SASL_SSL",
    ),
    (
        SERVERS,
        "Failed to resolve 'k:9093': Name or service not known (after 0ms in state CONNECT)",
        "host",
        "k:9093: Failed to resolve 'k:9093': Name or service not known",
        "bootstrap.servers",
    ),
    (
        SERVERS,
        "Connect to ipv4#127.0.0.1:9 failed: Connection refused (after 0ms in state CONNECT)",
        "away",
        "k:9093: Connect to ipv4#127.0.0.1:9 failed: Connection refused",
        "check that Kafka runs there",
    ),
    (
        SERVERS,
        "Connection setup timed out in state CONNECT (after 4001ms in state CONNECT)",
        "away",
        "timed out",
        "firewalls",
    ),
]


@pytest.mark.parametrize(
    "prefix", [PLACE, f"GroupCoordinator: {PLACE}", f"FAIL [rdkafka#consumer-2] [thrd:x]: {PLACE}"]
)
@pytest.mark.parametrize(
    ("properties", "text", "key", "reason", "remedy"),
    CONNECTIONS,
    ids=[f"{c[2]}-{i}" for i, c in enumerate(CONNECTIONS)],
)
def test_a_failed_connection_has_a_reason_and_a_remedy(properties, text, key, reason, remedy, prefix):
    """The broker, the property and what to do, whichever client says it, in a log line or an error."""
    cause = of_connection(prefix + text, properties)
    assert cause is not None
    assert cause.key == key
    assert reason in cause.reason
    assert remedy in cause.remedy
    assert "\n" not in str(cause)
    assert "hunter22" not in str(cause)
    assert cause.lasting is (key != "away")


def test_a_login_that_gets_no_token_says_why():
    """The token's server is none of Kafka's brokers."""
    cause = of_connection(
        "Failed to acquire SASL OAUTHBEARER token: no route", {**SCRAM, "sasl.mechanism": "OAUTHBEARER"}
    )
    assert cause is not None
    assert (cause.key, cause.reason) == ("token", "Failed to acquire SASL OAUTHBEARER token: no route")


def test_a_text_that_is_not_known_is_passed_on():
    """Waiting may mend it."""
    cause = of_connection("k:9093/1: Something else (after 3ms in state UP)", SERVERS)
    assert cause is not None
    assert (str(cause), cause.lasting) == ("k:9093: Something else", False)


def test_text_of_a_broker_forges_no_line():
    """What it says of itself is printed as one line."""
    text = f"{PLACE}SASL authentication error: no\n[2026] ERROR forged\x1b[31m (after 3ms in state AUTH_REQ)"
    cause = of_connection(text, SCRAM)
    assert cause is not None
    assert "\n" not in str(cause)
    assert "\x1b" not in str(cause)


@pytest.mark.parametrize(
    ("code", "key", "words"),
    [
        (10, "certificate expired", "has expired: renew it"),
        (9, "certificate early", "not valid yet"),
        (62, "certificate host", "made out to another host"),
        (64, "certificate host", "advertised.listeners"),
        (18, "certificate issuer", "/etc/ca.pem"),
        (19, "certificate issuer", "/etc/ca.pem"),
        (20, "certificate issuer", "not signed by the CA in ssl.ca.location"),
        (26, "certificate", "unsuitable purpose"),
    ],
)
def test_a_certificate_that_is_refused_says_what_is_wrong_with_it(code, key, words):
    """OpenSSL's verification results."""
    cause = untrusted("k:9093", code, "unsuitable purpose", SCRAM)
    assert cause.key == key
    assert words in str(cause)


def test_a_missing_right_comes_with_its_command():
    """Several in one command; the user's name is printed safely."""
    assert missing_right(SCRAM, ["Read", "Write"], "topic", "t") == (
        "the user shop lacks the right Read and Write on the topic t: kafka-acls.sh --bootstrap-server k:9093 --add "
        "--allow-principal User:shop --operation Read --operation Write --topic t"
    )
    assert "\n" not in missing_right({**SCRAM, "sasl.username": "a\nb"}, ["Read"], "group", "g")


NAMES = ["ssl.ca.location", "ssl.ca.pem", "sasl.password", "socket.timeout.ms"]


@pytest.mark.parametrize(
    ("given", "text", "reported"),
    [
        (
            {"ssl.ca.location": "/gone.pem"},
            "Failed to create consumer: ssl.ca.location failed: error:05880020:x509 certificate routines::BIO lib",
            "neli_kafka has ssl.ca.location = '/gone.pem', a file that cannot be read: give the path of one that can",
        ),
        (
            {"ssl.ca.location": "/etc/hostname"},
            "Failed to create producer: ssl.ca.location failed: error:05800088:no certificate or crl found",
            (
                "neli_kafka has ssl.ca.location = '/etc/hostname', which librdkafka refuses: ssl.ca.location failed: "
                "error:05800088:no certificate or crl found"
            ),
        ),
        (
            {"ssl.ca.locaton": "x"},
            'No such configuration property: "ssl.ca.locaton"',
            "neli_kafka has 'ssl.ca.locaton', which is not a property of librdkafka; did you mean ssl.ca.location?",
        ),
        (
            {"sasl.pasword": "hunter22"},
            'No such configuration property: "sasl.pasword"',
            "neli_kafka has 'sasl.pasword', which is not a property of librdkafka; did you mean sasl.password?",
        ),
        (
            {"socket.timeout.ms": 5},
            'Configuration property "socket.timeout.ms" value 5 is outside allowed range 10..300000\n',
            (
                "neli_kafka has socket.timeout.ms = 5, which librdkafka refuses: Configuration property "
                '"socket.timeout.ms" value 5 is outside allowed range 10..300000'
            ),
        ),
        (
            {"security.protocol": "TLS"},
            'Invalid value "TLS" for configuration property "security.protocol"',
            (
                "neli_kafka has security.protocol = 'TLS', which librdkafka refuses: Invalid value \"TLS\" for "
                'configuration property "security.protocol"'
            ),
        ),
        (
            {"ssl.key.pem": "-----BEGIN hunter22"},
            "Failed to create consumer: ssl.key.pem failed: not in PEM format?",
            "neli_kafka has ssl.key.pem = ***, which librdkafka refuses: ssl.key.pem failed: not in PEM format?",
        ),
        (
            {"sasl.mechanism": "PLAIN", "sasl.username": "shop"},
            "Failed to create consumer: sasl.username and sasl.password must be set",
            "neli_kafka lacks sasl.password: the mechanism PLAIN needs both",
        ),
        (
            {"sasl.mechanism": "SCRAM-SHA-999"},
            "Failed to create consumer: Unsupported hash function: SCRAM-SHA-999 (try SCRAM-SHA-512)",
            (
                "neli_kafka has sasl.mechanism = SCRAM-SHA-999, which this librdkafka does not have: use PLAIN, "
                "SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
            ),
        ),
        (
            {"plugin.library.paths": "nowhere"},
            "dlopen() failed: nowhere.so: cannot open shared object file (plugin nowhere)",
            (
                "neli_kafka is refused by librdkafka: dlopen() failed: nowhere.so: cannot open shared object file "
                "(plugin nowhere)"
            ),
        ),
    ],
)
def test_what_librdkafka_refuses_names_the_property(given, text, reported):
    """Its value, unless that is secret, and what to do."""
    properties = {**SERVERS, **given}
    found = refused(text, properties, names=lambda: NAMES, readable=lambda path: path == "/etc/hostname")
    assert found == reported
