"""Waiting: when a step that waits is over, and when a failed one is asked again. Pure."""

from __future__ import annotations

import hashlib
from datetime import datetime

from mcp_bus.config import POSITION_MAX, WAIT_MS_MAX
from mcp_bus.domain.definitions import Retry, Step, Wait
from mcp_bus.errors import BusError, Refused


def moment_of(wait: Wait, now: int) -> int | None:
    """The log time at which a wait is over (Unix ms), None for a signal's.

    Its references are resolved; Refused `bad_value` for what is no time, or further away than
    WAIT_MS_MAX.
    """
    if wait.signal is not None:
        return None
    at = unix_ms(wait.until) if wait.until is not None else now + whole_ms(wait.ms)
    if at - now > WAIT_MS_MAX:
        raise Refused(f"{at - now} ms are more than the {WAIT_MS_MAX} that a step may wait")
    return at


def delay_ms(retry: Retry, attempt: int, seed: str) -> int:
    """How long after failed attempt number `attempt` (1, 2, …) the next one begins; `seed` draws
    the jitter, the same wherever the log is folded."""
    grown = retry.initial_delay_ms * retry.factor ** min(attempt - 1, 64)
    delay = min(grown, retry.max_delay_ms)
    drawn = int.from_bytes(hashlib.sha256(f"{seed}|{attempt}".encode()).digest()[:4], "big") / 2**32
    return int(delay * (1 - retry.jitter * drawn))


def again(retry: Retry, attempt: int, error: BusError) -> bool:
    """Whether a step whose attempt failed is asked again."""
    worth = error.retryable and error.code not in retry.non_retryable
    return worth and attempt < retry.max_attempts


def overdue(step: Step, agent: str, *, silent: bool) -> Refused:
    """What is said of an agent that did not answer in time, or gave no sign of progress; or of a
    workflow that did not end."""
    if step.workflow is not None:
        code, detail = "step_timeout", f"{step.workflow.id} did not end within {step.timeout_ms} ms"
    elif silent:
        passed, code = step.heartbeat_timeout_ms, "heartbeat_timeout"
        detail = f"{agent} gave no sign of progress with {step.action} for {passed} ms"
    else:
        code = "step_timeout"
        detail = f"{agent} did not answer {step.action} within {step.timeout_ms} ms"
    return Refused(detail, code=code, retryable=True)


def unix_ms(value: object) -> int:
    """A point in time as an author writes it; Refused `bad_value`."""
    if isinstance(value, str) and not _is_number(value):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            at = None
        if at is None or at.tzinfo is None:
            raise Refused(f"{value!r} is no time: Unix ms, or RFC 3339 with an offset")
        return int(at.timestamp() * 1000)
    return whole_ms(value)


def whole_ms(value: object) -> int:
    """A number of milliseconds, also as text; Refused `bad_value`."""
    if isinstance(value, str) and _is_number(value) and len(value) <= 16:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= POSITION_MAX:
        return value
    raise Refused(f"{value!r} is no number of milliseconds")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
