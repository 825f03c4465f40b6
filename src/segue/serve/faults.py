"""What goes wrong with a request, in the form that OpenAI's clients read: never a traceback, a path or a type."""

from __future__ import annotations

import logging
from typing import Any

from segue.data import ConstraintError, NumericError

log = logging.getLogger("segue.serve")

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
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


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
    return Fault(500, "the server failed to answer this request; its log says why")
