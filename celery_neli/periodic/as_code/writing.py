"""Write entries as a file: the same entries give the same bytes, and `document.read` reads what they were."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic.as_code.document import VERSION
from celery_neli.periodic.as_code.reading import NEEDS_YAML
from celery_neli.schedule_topic.codec import Definition

WIDEST: Final = 1 << 20  # characters of a line; long text is not broken, so that a change shows in one place
FLOW: Final = 60  # characters of a list that stands in one line


def as_yaml(owner: str, entries: Iterable[tuple[str, Definition]]) -> str:
    """Return a file of YAML. Raises `ConfigurationError` if PyYAML is missing."""
    try:
        import yaml
    except ImportError:
        raise ConfigurationError(f"export: {NEEDS_YAML}, or export with --json") from None

    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.serialize(
        _node(_fields_of(owner, entries)), Dumper=dumper, allow_unicode=True, width=WIDEST, encoding=None
    )
    return text


def as_json(owner: str, entries: Iterable[tuple[str, Definition]]) -> str:
    """Return a file of JSON."""
    return json.dumps(_fields_of(owner, entries), indent=2, ensure_ascii=False) + "\n"


def fields_of(definition: Definition) -> dict[str, Any]:
    """Return what a file says of an entry. It says that an entry is paused, if the pause does not end by itself."""
    fields: dict[str, Any] = {"task": definition.task, "schedule": definition.schedule}
    if definition.args:
        fields["args"] = definition.args
    for name in ("kwargs", "options"):
        if value := getattr(definition, name):
            fields[name] = dict(sorted(value.items()))
    if definition.paused and definition.until is None:
        fields["paused"] = True
    if definition.changes and definition.changes[-1].note:
        fields["note"] = definition.changes[-1].note
    return fields


def _fields_of(owner: str, entries: Iterable[tuple[str, Definition]]) -> dict[str, Any]:
    fields: dict[str, Any] = {"version": VERSION}
    if owner:
        fields["owner"] = owner
    fields["entries"] = {name: fields_of(definition) for name, definition in sorted(entries)}
    return fields


def _node(value: Any) -> Any:
    """Return a node of YAML, with quotes where a reader of YAML could take text for something else."""
    import yaml

    from celery_neli.periodic.as_code.scalars import is_text

    tag = "tag:yaml.org,2002:"
    if isinstance(value, Mapping):
        pairs = [(_node(key), _node(each)) for key, each in value.items()]
        return yaml.MappingNode(f"{tag}map", pairs, flow_style=not value)
    if isinstance(value, (list, tuple)):
        plain = not any(isinstance(each, (Mapping, list, tuple)) for each in value)
        short = plain and len(str(value)) <= FLOW
        return yaml.SequenceNode(f"{tag}seq", [_node(each) for each in value], flow_style=short)
    if isinstance(value, str):
        style = "|" if "\n" in value else None if is_text(value) else "'"
        return yaml.ScalarNode(f"{tag}str", value, style=style)
    if value is None:
        return yaml.ScalarNode(f"{tag}null", "null")
    if isinstance(value, bool):
        return yaml.ScalarNode(f"{tag}bool", "true" if value else "false")
    if isinstance(value, int):
        return yaml.ScalarNode(f"{tag}int", str(value))
    number = repr(value)  # YAML 1.1 wants a dot and a sign in 1e+16
    if "e" in number and "." not in number:
        number = number.replace("e", ".0e")
    return yaml.ScalarNode(f"{tag}float", number)
