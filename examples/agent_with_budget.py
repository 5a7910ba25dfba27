"""An agent that buys its own answers, from its own wallet, and stops when its budget is spent.

The gateway asks whoever has no API key to pay (docs/ledger.md). x402's client does: with its first request it
puts the whole budget into escrow, then signs for each answer. What is not used can be had back.

AGENT_KEY=0x… SHOAL_GATEWAY=https://… python agent_with_budget.py BUDGET MODEL [QUESTION …]

BUDGET is in the token's smallest unit. Only for test chains.
"""

import asyncio
import base64
import json
import os
import sys

import httpx
from eth_account import Account
from x402 import x402Client
from x402.http.clients.httpx import x402_httpx_transport
from x402.mechanisms.evm.batch_settlement.client import (
    BatchSettlementEvmScheme,
    BatchSettlementEvmSchemeOptions,
)

GATEWAY = os.environ.get("SHOAL_GATEWAY", "http://127.0.0.1:4480")
QUESTIONS = ["What is a shoal?", "Why do fish swim in one?", "Who leads it?"] * 100


def wallet(budget: int) -> x402Client:
    """What pays: one deposit of the whole budget, and none after it."""
    deposits = iter([str(budget)])
    options = BatchSettlementEvmSchemeOptions(deposit_strategy=lambda _: next(deposits, False))
    scheme = BatchSettlementEvmScheme(Account.from_key(os.environ["AGENT_KEY"]), options)
    client = x402Client()
    client.register("eip155:*", scheme)
    client.set_spend_controls({"allowed_assets": True})  # the gateway's token; the budget bounds what it gets
    return client


async def main(budget: int, model: str, questions: list[str]) -> None:
    transport = x402_httpx_transport(wallet(budget))
    async with httpx.AsyncClient(base_url=GATEWAY, transport=transport, timeout=120) as http:
        for number, question in enumerate(questions, 1):
            body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 24}
            answer = await http.post("/v1/chat/completions", json=body)
            if answer.status_code == 402:
                print(f"the budget is spent: {number - 1} answers bought")
                return
            answer.raise_for_status()
            paid = json.loads(base64.b64decode(answer.headers["payment-response"]))["extra"]["chargedAmount"]
            text = answer.json()["choices"][0]["message"]["content"]
            print(f"{question}  [{paid}]  {text}")
    print(f"{len(questions)} answers bought, and something is left")


asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:] or QUESTIONS))
