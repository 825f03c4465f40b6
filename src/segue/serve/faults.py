"""What goes wrong with a request, in the form that OpenAI's clients read: never a traceback, a path or a type."""

from __future__ import annotations

import logging
from typing import Any

import torch

from segue.data import ConstraintError, NumericError

log = logging.getLogger("segue.serve")

NO_MODEL = "model_not_found"  # the code of a name that this server does not serve so
LONGEST = 1500  # characters of a message: it may quote a value of megabytes
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class Fault(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        if self.status in (429, 503):
            return {"Retry-After": "1"}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """As the API writes errors."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message.encode(errors="replace").decode()  # it may quote half a surrogate pair
        message = message if len(message) <= LONGEST else message[: LONGEST - 4] + " ..."
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


def gone() -> Fault:
    """The client has left: nobody reads this, but the log has its status."""
    return Fault(499, "the client has gone")


def late(seconds: float) -> Fault:
    """A request that took longer than it may."""
    return Fault(504, f"no answer within {seconds:g} seconds", code="deadline_exceeded")


def full(waiting: int, what: str = "requests") -> Fault:
    """A request that finds no place to wait."""
    return Fault(429, f"{waiting} {what} wait already; try again soon", code="queue_full")


def refused(error: ValueError, param: str | None = None) -> Fault:
    """A request that Segue's own checks refuse: their messages are written for users."""
    return Fault(400, str(error), param=param)


def failed(error: BaseException) -> Fault:
    """What a request came to that was admitted. A dead end or a missing capability is told; the rest is a bug, or a
    model or device that fails, and only the log says more."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, ConstraintError):
        return Fault(422, str(error), code="constraint_unsatisfied")
    if isinstance(error, ValueError) and not isinstance(error, NumericError):
        return refused(error)
    log.error("a request failed", exc_info=error)
    if isinstance(error, NumericError):
        return Fault(500, "the model gave NaN or infinite logits for this request", code="numeric_error")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        message = "no memory was left for this request: make it smaller, or try again when fewer are answered"
        return Fault(503, message, code="out_of_memory")
    return Fault(500, "the server failed to answer this request; its log says why")
