"""A client on a host of a lab: asks once, and tells of each token when it came and by which ways."""

from __future__ import annotations

import json
import sys
import time

import shoal


def main() -> None:
    model, tokens = sys.argv[1], int(sys.argv[2])
    with shoal.connect(resume_s=30, speculate="off", mdns=False) as client:
        pool = client.swarm.rings._pool  # pyright: ignore[reportPrivateUsage]
        for delta in client.generate(model, "Machines that help", max_tokens=tokens):
            ways = {channel.peer: (channel.way, channel.moves) for channel in pool.all()}
            sys.stdout.write(json.dumps([time.monotonic(), delta.token_ids, ways]) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
