"""Every error of the bus: one tree, one table of stable codes.

    BusError                     code, status, detail, findings
    ├── Refused                  the caller is wrong: 4xx, never worth a retry
    │   ├── MessageError         not a message of the wire (messages.py)
    │   └── SettingsError        the settings are wrong; nothing was started
    └── Unavailable              the bus is at fault: 5xx, worth a retry
        ├── OutcomeUnknown       published, but nobody said whether it was stored
        └── LogWentBack          the log lost history that was seen before

Handlers raise; only the doors translate: the gateway into RFC 9457 problems, a decider into
the `error` of a response, the CLI into one sentence and an exit code. `CODES` is the whole list
of codes that can reach a caller; docs/errors.md explains each and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# code -> (HTTP status, title). Agents add codes of their own, which travel as they are.
CODES: dict[str, tuple[int, str]] = {
    # the wire: bytes that are not a message
    "malformed_json": (400, "The body is not JSON"),
    "too_large": (413, "The message is too large"),
    "too_deep": (422, "The message is nested too deeply"),
    "duplicate_key": (422, "An object has the same key twice"),
    "bad_number": (422, "A number cannot be carried exactly"),
    "bad_text": (422, "A text holds half a surrogate pair"),
    "missing": (422, "A required field is missing"),
    "wrong_type": (422, "A field has the wrong type"),
    "bad_value": (422, "A field has a value that is not allowed"),
    "bad_id": (422, "An id is not one of ours"),
    "reserved_id": (422, "An id is reserved"),
    "envelope_mismatch": (422, "Envelope and subject disagree"),
    # doors
    "unauthenticated": (401, "Who are you?"),
    "forbidden": (403, "You may not do this"),
    "not_found": (404, "There is nothing here"),
    "trimmed": (410, "The log holds this no longer"),
    "method_not_allowed": (405, "This path does not take that method"),
    # registry
    "unknown_action": (404, "The agent has no such action"),
    "unknown_agent": (404, "No such agent"),
    "too_many_agents": (409, "There are as many agents as a bus keeps"),
    "agent_inactive": (409, "The agent is inactive"),
    "agent_revoked": (403, "The agent is revoked"),
    "not_taken": (504, "No process of the agent took the request in time"),
    "delivered_too_often": (502, "The request was handed out too often"),
    "not_answered": (504, "The agent took the request and did not answer"),
    "request_lost": (503, "The request was lost with a part of the log"),
    # workflows
    "unknown_workflow": (404, "No such workflow"),
    "unknown_execution": (404, "No such execution"),
    "unknown_conversation": (404, "No such conversation"),
    "changed_meanwhile": (412, "It was changed by somebody else"),
    "no_capable_agent": (503, "No active agent can do that"),
    "version_exists": (409, "This version exists with other content"),
    "duplicate_step": (422, "Two steps have the same id"),
    "unknown_reference": (422, "A reference points nowhere"),
    "circular_reference": (422, "A step needs itself or a later step"),
    "bad_condition": (422, "A condition cannot be read"),
    "bad_schema": (422, "A JSON Schema is none"),
    # executions: what is refused, and what a failed step says
    "execution_running": (409, "The execution has not ended"),
    "already_redriven": (409, "It was sent anew already"),
    "not_rerunnable": (409, "Nobody knows where its answers stand"),
    "unknown_step": (422, "The workflow has no such step"),
    "execution_ended": (409, "The execution has ended"),
    "execution_ending": (409, "The execution is being undone"),
    "idempotency_conflict": (409, "This key started something else"),
    "step_skipped": (422, "A step was skipped that must not be"),
    "signal_timeout": (504, "The signal did not come in time"),
    "heartbeat_timeout": (504, "The agent gave no sign of progress"),
    "unresolved_reference": (422, "A reference had no value when it was needed"),
    "condition_failed": (422, "A condition is neither true nor false"),
    "workflow_too_deep": (422, "Workflows start each other too deeply"),
    "child_cancelled": (409, "The workflow that a step started was cancelled"),
    "not_a_list": (422, "A step's forEach names no list"),
    "too_many_items": (422, "A step's forEach names too long a list"),
    "postcondition_failed": (422, "The post-condition does not hold"),
    "step_timeout": (504, "The agent did not answer in time"),
    "malformed_answer": (502, "The answer has neither outputs nor error"),
    "decision_failed": (500, "The bus failed to decide"),
    # agents: what the SDK answers by itself
    "bad_inputs": (422, "The inputs do not fit"),
    "bad_outputs": (502, "The outputs do not fit the action"),
    "action_failed": (500, "The action raised an error"),
    "tool_error": (502, "The tool answered with an error"),
    "server_ended": (503, "The tool's server ended"),
    "answer_timeout": (504, "Nobody answered in time"),
    "deadline_exceeded": (504, "The request's deadline has passed"),
    "maybe_executed": (502, "It may have been executed, and is not run again"),
    "cancelled": (409, "The asker cancelled the request"),
    # the bus itself
    "settings": (500, "The settings are wrong"),
    "log_full": (503, "The log is full"),
    "log_unavailable": (503, "The log does not answer"),
    "outcome_unknown": (503, "It is not known whether the message was stored"),
    "log_went_back": (503, "The log lost history"),
    "busy": (503, "Too much is asked at once"),
    "store_unavailable": (503, "The event store does not answer"),
    "internal": (500, "The bus made a mistake"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where: `pointer` is a JSON Pointer (RFC 6901), "" the whole."""

    pointer: str
    code: str
    detail: str

    def as_json(self) -> dict[str, str]:
        return {"pointer": self.pointer, "code": self.code, "detail": self.detail}


class BusError(Exception):
    """An error that may reach a caller: a code of `CODES` and a sentence with all the facts.

    `status` and `title` follow from the code; `details` is JSON that the answer carries along.
    """

    default_code = "internal"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        pointer: str | None = None,
        findings: list[Finding] | None = None,
        retryable: bool = False,
        details: Any = None,
    ) -> None:
        super().__init__(detail)
        self.code = code or self.default_code
        self.detail = detail
        self.details = details
        self.retryable = retryable
        self.findings = findings or (
            [Finding(pointer, self.code, detail)] if pointer is not None else []
        )

    @property
    def status(self) -> int:
        return CODES.get(self.code, (502, ""))[0]

    @property
    def title(self) -> str:
        return CODES.get(self.code, (502, "The agent answered with an error"))[1]

    def as_json(self) -> dict[str, Any]:
        """The `error` of a response: {code, message, retryable, details}."""
        details = self.details
        if self.findings:
            details = {"errors": [finding.as_json() for finding in self.findings]}
        return {
            "code": self.code,
            "message": self.detail,
            "retryable": self.retryable,
            "details": details,
        }

    @classmethod
    def from_json(cls, error: dict[str, Any]) -> BusError:
        """The error that an answer carried, to be raised where the question was asked."""
        details = error.get("details")
        found = details.get("errors") if isinstance(details, dict) else None
        findings = [
            Finding(str(f.get("pointer", "")), str(f.get("code", "")), str(f.get("detail", "")))
            for f in (found if isinstance(found, list) else [])
            if isinstance(f, dict)
        ]
        return BusError(
            str(error.get("message", "")),
            code=str(error.get("code", "internal")),
            findings=findings,
            retryable=bool(error.get("retryable", False)),
            details=None if findings else details,
        )


class Refused(BusError):
    """The caller is wrong, and the same call again will be refused again."""

    default_code = "bad_value"


class MessageError(Refused):
    """Bytes that are not a message of the wire; `findings` say where."""


class SettingsError(Refused):
    """Settings that do not fit; raised before anything is started."""

    default_code = "settings"


class Unavailable(BusError):
    """The bus cannot answer now; the same call later may succeed."""

    default_code = "log_unavailable"

    def __init__(self, detail: str, **more: Any) -> None:
        super().__init__(detail, **{"retryable": True, **more})


class OutcomeUnknown(Unavailable):
    """A publish without an answer: it may or may not be stored. Keep `message_id` and look."""

    default_code = "outcome_unknown"

    def __init__(self, detail: str, message_id: str) -> None:
        super().__init__(detail, details={"messageId": message_id})
        self.message_id = message_id


class LogWentBack(Unavailable):
    """The log ends before a position that was seen: restored from an older copy, or damaged."""

    default_code = "log_went_back"
