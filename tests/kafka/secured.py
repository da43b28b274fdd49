"""A real Kafka with TLS, SASL and the authorizer: one node, users, rights, and certificates made for the test run."""

from __future__ import annotations

import base64
import datetime
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.kafka.cluster import create_topic, single_node_properties
from tests.kafka.node import KafkaNode
from tests.processes import free_ports, stop_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.1"
#: Name of a listener → protocol. The last two have a certificate that has expired, and one of another host.
LISTENERS = {
    "SASL_PLAINTEXT": "SASL_PLAINTEXT",
    "SASL_SSL": "SASL_SSL",
    "SSL": "SSL",
    "EXPIRED": "SASL_SSL",
    "OTHERHOST": "SASL_SSL",
}
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")
#: Listeners that have fewer mechanisms than `MECHANISMS`.
FEWER = {"CONTROLLER": ("PLAIN",), "SASL_PLAINTEXT": ("PLAIN", "SCRAM-SHA-512")}
SUPERUSER, SUPERUSER_PASSWORD = "admin", "admin-secret"
PLAIN_USER, PLAIN_PASSWORD = "plain", "plain-secret"
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Alter": AclOperation.ALTER,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
RESOURCES = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}


@dataclass(frozen=True, order=True)
class Right:
    """One right as `kafka-acls.sh` spells it: an operation on a topic or a group."""

    operation: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on the {self.kind} {self.name}"


@dataclass(frozen=True)
class User:
    """A user of the secured Kafka."""

    name: str
    password: str


class SecuredKafka:
    """One node with the listeners of `LISTENERS` and Kafka's own authorizer: without a right, nothing is allowed.

    Context manager. Any thread.
    """

    def __init__(self, *, java: str, libs: Path, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        *ports, controller = free_ports(len(LISTENERS) + 1)
        self.ports = dict(zip(LISTENERS, ports, strict=True))
        self._ca, self._other_ca = trustme.CA(), trustme.CA()
        self.ca_file, self.other_ca_file = directory / "ca.pem", directory / "other-ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))
        self._other_ca.cert_pem.write_to_path(str(self.other_ca_file))
        self._admin_client: AdminClient | None = None
        self.node = KafkaNode(
            id=1,
            port=self.ports["SASL_PLAINTEXT"],
            java=java,
            libs=libs,
            directory=directory / "node",
            properties={**single_node_properties(directory / "node"), **dict(self._properties(controller))},
        )

    def _properties(self, controller: int) -> Iterator[tuple[str, Any]]:
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        usual = self._certificate("server", HOST)
        expired = self._certificate("expired", HOST, not_before=now - 2 * day, not_after=now - day)
        elsewhere = self._certificate("elsewhere", "kafka.example.org")
        protocols = {**LISTENERS, "CONTROLLER": "SASL_PLAINTEXT"}
        addresses = [f"{name}://{HOST}:{port}" for name, port in self.ports.items()]
        yield "controller.quorum.voters", f"1@{HOST}:{controller}"
        yield "listeners", ",".join([*addresses, f"CONTROLLER://{HOST}:{controller}"])
        yield "advertised.listeners", ",".join(addresses)
        yield "listener.security.protocol.map", ",".join(f"{name}:{value}" for name, value in protocols.items())
        yield "inter.broker.listener.name", "SASL_PLAINTEXT"
        yield "sasl.mechanism.inter.broker.protocol", "PLAIN"
        yield "sasl.mechanism.controller.protocol", "PLAIN"
        yield "authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        yield "allow.everyone.if.no.acl.found", "false"
        yield "super.users", f"User:{SUPERUSER}"
        yield "ssl.principal.mapping.rules", r"RULE:^.*CN=([^,]+).*$/$1/,DEFAULT".replace("\\", r"\\")
        module = "org.apache.kafka.common.security"
        plain = (
            f'{module}.plain.PlainLoginModule required username="{SUPERUSER}" password="{SUPERUSER_PASSWORD}" '
            f'user_{SUPERUSER}="{SUPERUSER_PASSWORD}" user_{PLAIN_USER}="{PLAIN_PASSWORD}";'
        )
        for name, protocol in protocols.items():
            prefix = f"listener.name.{name.lower()}"
            if protocol.startswith("SASL"):
                enabled = FEWER.get(name, MECHANISMS)
                yield f"{prefix}.sasl.enabled.mechanisms", ",".join(enabled)
                yield f"{prefix}.plain.sasl.jaas.config", plain
                for each in enabled:
                    if each != "PLAIN":
                        login = f"{module}.scram.ScramLoginModule required;"
                        yield f"{prefix}.{each.lower()}.sasl.jaas.config", login
            if protocol.endswith("SSL"):
                shown = {"EXPIRED": expired, "OTHERHOST": elsewhere}.get(name, usual)
                yield f"{prefix}.ssl.keystore.type", "PEM"
                yield f"{prefix}.ssl.keystore.location", shown
                yield f"{prefix}.ssl.truststore.type", "PEM"
                yield f"{prefix}.ssl.truststore.location", self.ca_file
                yield f"{prefix}.ssl.client.auth", "required" if protocol == "SSL" else "none"

    def _certificate(self, name: str, host: str, *, ca: trustme.CA | None = None, **options: Any) -> Path:
        """Make a certificate; the file holds the key and the chain."""
        path = self.directory / f"{name}.pem"
        if not path.exists():
            made = (ca or self._ca).issue_cert(host, **options)
            key = serialization.load_pem_private_key(made.private_key_pem.bytes(), password=None)
            # Java reads no other encoding.
            encoded = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(encoded + b"".join(each.bytes() for each in made.cert_chain_pems))
        return path

    def address(self, listener: str) -> str:
        """`host:port` of a listener."""
        return f"{HOST}:{self.ports[listener]}"

    def properties(
        self, user: User | None = None, *, listener: str = "SASL_SSL", mechanism: str = "SCRAM-SHA-512"
    ) -> dict[str, Any]:
        """Return what `neli_kafka` needs to reach `listener` as `user`, the superuser by default.

        A client of the listener "SSL" has a certificate in place of a password (mutual TLS).
        """
        found: dict[str, Any] = {
            "bootstrap.servers": self.address(listener),
            "security.protocol": LISTENERS[listener],
        }
        if LISTENERS[listener].startswith("SASL"):
            mechanism = mechanism if user else "PLAIN"
            user = user or User(SUPERUSER, SUPERUSER_PASSWORD)
            found |= {"sasl.mechanism": mechanism, "sasl.username": user.name, "sasl.password": user.password}
        if LISTENERS[listener].endswith("SSL"):
            found["ssl.ca.location"] = str(self.ca_file)
        if LISTENERS[listener] == "SSL":
            found |= self.client_certificate((user or User(SUPERUSER, "")).name)
        return found

    def client_certificate(self, name: str, *, trusted: bool = True) -> dict[str, str]:
        """Return the properties of a client that shows a certificate of this name, of 64 characters at most. `trusted`:
        of the CA that brokers trust.
        """
        ca = self._ca if trusted else self._other_ca
        path = str(self._certificate(f"client-{name}-{trusted}", "client.example.org", ca=ca, common_name=name))
        return {"ssl.certificate.location": path, "ssl.key.location": path}

    def create_user(self, name: str) -> User:
        """Create a user for SCRAM, or give the one of this name another password. It has no rights."""
        user = User(name, f"pw-{uuid.uuid4().hex}")
        self.set_password(user)
        return user

    def set_password(self, user: User) -> None:
        """Give the user this password."""
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            info = ScramCredentialInfo(mechanism, 4096)
            change = UserScramCredentialUpsertion(user.name, info, user.password.encode())
            self.admin().alter_user_scram_credentials([change])[user.name].result(30)

    def grant(self, user: User, *rights: Right) -> None:
        """Give the user rights, and wait until the broker knows of them."""
        bindings = [self._binding(user, right) for right in rights]
        for future in self.admin().create_acls(bindings).values():
            future.result(30)
        self._await_acls(user, lambda found: found >= set(rights))

    def revoke(self, user: User, *rights: Right) -> None:
        """Take rights from the user, and wait until the broker knows of it."""
        filters = [self._binding(user, right, AclBindingFilter) for right in rights]
        for future in self.admin().delete_acls(filters).values():
            future.result(30)
        self._await_acls(user, lambda found: not found & set(rights))

    def rights(self, user: User) -> set[Right]:
        """Return what the user may do."""
        everything = AclBindingFilter(
            ResourceType.ANY,
            None,
            ResourcePatternType.ANY,
            f"User:{user.name}",
            None,
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        operations = {value: name for name, value in OPERATIONS.items()}
        kinds = {value: name for name, value in RESOURCES.items()}
        found = self.admin().describe_acls(everything).result(30)
        return {Right(operations[each.operation], kinds[each.restype], each.name) for each in found}

    def _await_acls(self, user: User, condition: Any) -> None:
        wait_until(lambda: condition(self.rights(user)), timeout=30, what=f"the rights of {user.name}")

    @staticmethod
    def _binding(user: User, right: Right, kind: Any = AclBinding) -> Any:
        return kind(
            RESOURCES[right.kind],
            right.name,
            ResourcePatternType.LITERAL,
            f"User:{user.name}",
            "*",
            OPERATIONS[right.operation],
            AclPermissionType.ALLOW,
        )

    def create_topic(self, topic: str, *, partitions: int = 1, config: dict[str, str] | None = None) -> None:
        """Create a topic and wait until every partition is led."""
        create_topic(self.admin(), topic, partitions=partitions, config=config)

    def admin(self) -> AdminClient:
        """Return the superuser's client, one for the node's life."""
        if self._admin_client is None:
            self._admin_client = AdminClient({**self.properties(listener="SASL_PLAINTEXT"), "log_level": 0})
        return self._admin_client

    def __enter__(self) -> SecuredKafka:
        cluster_id = base64.urlsafe_b64encode(b"\1" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        process = self.node.format(cluster_id)
        process.wait(120)
        if stop_process(process):
            raise RuntimeError(f"the secured Kafka could not be formatted:\n{self.node.log_tail()}")
        self.node.start()
        self.node.wait_ready(timeout=120)
        wait_until(
            lambda: self.admin().list_topics(timeout=10).brokers, timeout=60, what=f"a broker, see {self.node.log}"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._admin_client = None
        self.node.kill()
