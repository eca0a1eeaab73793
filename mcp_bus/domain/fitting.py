"""What fits into a message. Pure.

What an author, an agent or a caller brought is checked before it is said again, elsewhere and with
more around it: so a step fails by it, and is undone, or a command is refused; a decision that is no
message would end its execution by DecisionFailed.
"""

from __future__ import annotations

from typing import Any

from mcp_bus.config import (
    ENVELOPE_BYTES_MAX,
    ERROR_CHARS_MAX,
    ERROR_DETAILS_BYTES_MAX,
    ERROR_LEVELS_MAX,
    FINDING_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_DEPTH_MAX,
    PAYLOAD_ENVELOPE_BYTES_MAX,
)
from mcp_bus.errors import BusError, Refused
from mcp_bus.strict_json import dumps, is_shallow

# of a step: inputs, outputs, and those of all its items together, which one fact holds
OUTPUTS_BYTES_MAX = MESSAGE_BYTES_MAX - ENVELOPE_BYTES_MAX
PAYLOAD_BYTES_MAX = MESSAGE_BYTES_MAX - PAYLOAD_ENVELOPE_BYTES_MAX
ABOVE_PAYLOAD = 2  # levels of a message: itself, and its context
ABOVE_OUTPUTS = ABOVE_PAYLOAD + 1


def check(
    value: Any, what: str, bytes_max: int = OUTPUTS_BYTES_MAX, above: int = ABOVE_OUTPUTS
) -> None:
    """Refused `too_large` or `too_deep` for a value that is to stand so many levels deep in a
    message; `what` begins the sentence, in the plural."""
    data = dumps(value)
    if len(data) > bytes_max:
        raise Refused(f"{what} take {len(data)} bytes, of {bytes_max}", code="too_large")
    levels = MESSAGE_DEPTH_MAX - above
    if not is_shallow(data, value, levels):
        raise Refused(f"{what} are nested more than {levels} levels", code="too_deep")


def fits(payload: Any) -> bool:
    """Whether a fact can have this payload."""
    return len(dumps(payload)) <= PAYLOAD_BYTES_MAX


def told(error: BusError) -> dict[str, Any]:
    """An error as a decider tells it, {code, message, retryable, details}: long texts end in `…`,
    details that are too large, or too deep, are left out; of findings the first ones stay."""
    said = error.as_json()
    said["code"] = _cut(said["code"], FINDING_CHARS_MAX)
    said["message"] = _cut(said["message"], ERROR_CHARS_MAX)
    if error.findings:
        said["details"] = {"errors": _first(said["details"]["errors"])}
    elif said["details"] is not None and not _is_small(said["details"]):
        said["details"] = None
    return said


def _first(findings: list[dict[str, str]]) -> list[dict[str, str]]:
    """As many as there is room for, at least one."""
    cut = [{name: _cut(text, FINDING_CHARS_MAX) for name, text in f.items()} for f in findings]
    while len(cut) > 1 and not _is_small(cut):
        cut = cut[: len(cut) // 2]
    return cut


def _is_small(details: Any) -> bool:
    data = dumps(details)
    small = len(data) <= ERROR_DETAILS_BYTES_MAX
    return small and is_shallow(data, details, ERROR_LEVELS_MAX)


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"
