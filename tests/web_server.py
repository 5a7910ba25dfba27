"""A web server in a test's own process, for a client that may leave in the middle."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class WebServer(ThreadingHTTPServer):
    """Says nothing of a client that is gone: whichever test runs then would be found to have printed it."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
