"""The thread that computes: a process that ends meanwhile ends well."""

from __future__ import annotations

import subprocess
import sys

ENDS_MEANWHILE = """
import torch
from shoal.executor.thread import ComputeThread

thread, matrix = ComputeThread(), torch.randn(900, 900)

def compute():
    for _ in range(5):
        matrix @ matrix

for _ in range(3):
    thread.post(compute)
{close}
"""


def test_a_process_that_ends_while_torch_computes_does_not_crash() -> None:
    for close in ("thread.close()", ""):
        program = [sys.executable, "-c", ENDS_MEANWHILE.format(close=close)]
        ran = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
