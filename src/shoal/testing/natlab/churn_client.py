"""A client on a host of a lab: asks the same again and again, and tells of each answer in a line of JSON.

It ends when its stdin does, with the answer that it has begun.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import shoal
from shoal.errors import ShoalError
from shoal.metrics.logs import log_to_stderr

RESUME_S = 60.0
BETWEEN_S = 0.2
PROMPT = "Machines that help each other"


def main() -> None:
    """Ask ``MODEL`` for ``TOKENS`` tokens, at most ``TIMES`` times; 0 is no limit."""
    model, tokens, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    log_to_stderr("info", "json")
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    asked = 0
    with shoal.connect(resume_s=RESUME_S, speculate="off", mdns=False) as client:
        while not ended.wait(BETWEEN_S) and (not times or asked < times):
            asked += 1
            token_ids: list[int] = []
            answer, began = client.generate(model, PROMPT, max_tokens=tokens), time.monotonic()
            gap_s, at, error = 0.0, 0.0, ""
            try:
                for delta in answer:
                    now = time.monotonic()
                    gap_s, at = max(gap_s, now - at if at else 0.0), now
                    token_ids += delta.token_ids
            except ShoalError as raised:
                error = f"{raised.code}: {raised.message}"
            listed = [announcement.peer for announcement in client.announcements()]
            survived = [f"{one.way} after {one.gap_s:.1f} s" for one in answer.answer.reroutes]
            line = {"token_ids": token_ids, "gap_s": round(gap_s, 2), "error": error, "listed": listed}
            line |= {"took_s": round(time.monotonic() - began, 2), "survived": survived}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
