"""The process in a gateway that forwards ports for its hosts, by UPnP, NAT-PMP and PCP."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time

from shoal.testing.natlab.gateway import natpmp, pcp, upnp
from shoal.testing.natlab.gateway.firewall import LAN_ADDRESS
from shoal.testing.natlab.gateway.port_table import PortTable

DATAGRAM = 2048


def main() -> None:
    """Answer the hosts of a gateway, whose public address is the first argument, until killed."""
    public, table = sys.argv[1], PortTable()
    searches, requests = _listen_to_searches(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    requests.bind((LAN_ADDRESS, natpmp.PORT))
    server = upnp.serve_http(upnp.GatewayOrders(public, table))
    threading.Thread(target=_answer_searches, args=(searches,), daemon=True).start()
    threading.Thread(target=_answer_requests, args=(requests, public, table), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()


def _listen_to_searches() -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listening.bind(("", upnp.SSDP_PORT))
    group = struct.pack("4s4s", socket.inet_aton(upnp.SSDP_GROUP), socket.inet_aton(LAN_ADDRESS))
    listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    return listening


def _answer_searches(listening: socket.socket) -> None:
    while True:
        datagram, sender = listening.recvfrom(DATAGRAM)
        for answer in upnp.answer_search(datagram):
            listening.sendto(answer, sender)


def _answer_requests(listening: socket.socket, public: str, table: PortTable) -> None:
    began = time.monotonic()
    while True:
        request, sender = listening.recvfrom(DATAGRAM)
        up_s = int(time.monotonic() - began)
        respond = pcp.answer_pcp if request[:1] == bytes([pcp.VERSION]) else natpmp.answer_natpmp
        answer = respond(request, sender[0], public, up_s, table)
        if answer is not None:
            listening.sendto(answer, sender)


if __name__ == "__main__":
    main()
