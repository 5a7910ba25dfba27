"""What one reader takes for one request, and another for two, is refused (docs/hostile.md 28)."""

from __future__ import annotations

import trio

HOST = b"Host: 127.0.0.1\r\n"
HIDDEN = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % (len(HIDDEN) + 5)


async def sent(gateway, data: bytes) -> bytes:
    """All that comes back for ``data`` until the connection is closed, or nothing more comes."""
    port = int(gateway.url.rpartition(":")[2])
    answer = bytearray()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        with trio.move_on_after(10):
            while more := await stream.receive_some():
                answer += more
            return bytes(answer)
    raise AssertionError(f"the connection stays open: {bytes(answer)!r}")


def post(headers: bytes, body: bytes = b"0\r\n\r\n" + HIDDEN, version: bytes = b"1.1") -> bytes:
    return b"POST /v1/completions HTTP/" + version + b"\r\n" + HOST + headers + b"\r\n" + body


AMBIGUOUS = {
    "a length beside chunks": post(LENGTH + CHUNKED),
    "chunks beside a length": post(CHUNKED + LENGTH),
    "two lengths": post(b"Content-Length: 5\r\n" + LENGTH),
    "the same length twice": post(LENGTH * 2),
    "a list of one length": post(b"Content-Length: 5, 5\r\n"),
    "a length with a sign": post(b"Content-Length: +5\r\n"),
    "a length in hexadecimal": post(b"Content-Length: 0x5\r\n"),
    "a length below zero": post(b"Content-Length: -1\r\n"),
    "a length of no digits": post(b"Content-Length: \r\n"),
    "a length of very many digits": post(b"Content-Length: " + b"9" * 30 + b"\r\n"),
    "chunks in HTTP/1.0": post(CHUNKED, version=b"1.0"),
    "chunks twice": post(CHUNKED * 2),
    "another coding": post(b"Transfer-Encoding: gzip, chunked\r\n"),
    "a coding with a tab before it": post(LENGTH + b"Transfer-Encoding:\tchunked\r\n"),
    "a coding with a vertical tab": post(LENGTH + b"Transfer-Encoding:\x0bchunked\r\n"),
    "a coding that is nearly one": post(LENGTH + b"Transfer-Encoding: xchunked\r\n"),
    "a folded header": post(b"X: a\r\n b\r\n" + CHUNKED),
    "a folded length": post(b"Content-Length:\r\n 5\r\n"),
    "a folded first header": b"GET /health HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n",
    "a space before the colon": post(b"Content-Length : 5\r\n"),
    "a header without a name": post(b": 5\r\n"),
    "lines that end in LF": b"GET /health HTTP/1.1\nHost: 127.0.0.1\n\n",
    "one line that ends in LF": b"GET /health HTTP/1.1\r\n" + b"X: a\n" + HOST + b"\r\n",
    "a head that ends in LF": b"GET /health HTTP/1.1\r\n" + HOST + b"\n",
    "a CR within a line": b"GET /health HTTP/1.1\r\nX: a\rb\r\n" + HOST + b"\r\n",
    "a NUL": b"GET /health HTTP/1.1\r\nX: a\0b\r\n" + HOST + b"\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\n" + HOST * 2 + b"\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
}


async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(shared):
    for what, request in AMBIGUOUS.items():
        answer = await sent(shared, request)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), (what, answer)
        assert answer.count(b"HTTP/1.1 ") == 1, what
        assert b"connection: close" in answer.lower(), what


async def test_a_chunk_whose_length_can_be_read_in_two_ways_ends_the_connection(shared):
    """What came before it may have been answered; what comes behind it is not read as a request."""
    for size in (b"5;\nx", b"5\n", b"-1", b"0x5", b"5 5", b"", b"1" * 40):
        answer = await sent(shared, post(CHUNKED, size + b"\r\nhello\r\n0\r\n\r\n" + HIDDEN))
        assert answer.count(b"HTTP/1.1 ") <= 1, size
        assert b'"object":"list"' not in answer, size


async def test_ambiguity_in_a_later_request_is_refused_too(shared):
    answer = await sent(shared, HIDDEN + post(LENGTH + CHUNKED))
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b"HTTP/1.1 400 ") == 1


async def test_what_is_plain_is_read_whole_or_byte_by_byte(shared):
    body = b'{"model": "%s", "prompt": "hi", "max_tokens": 1}' % shared.model.encode()
    head = b"Content-Type: application/json\r\n"
    sized = post(head + b"Content-Length: %d\r\n" % len(body), body)
    chunked = post(head + CHUNKED, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    port = int(shared.url.rpartition(":")[2])
    for request in (sized, chunked):
        for size in (len(request), 1):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                for at in range(0, len(request), size):
                    await stream.send_all(request[at : at + size])
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


MALFORMED = (
    b"Host: [\r\n",
    b"Host: ]\r\n",
    b"Host: [::1\r\n",
    b"Host: [x]:80\r\n",
    b"Host: 127.0.0.1:x\r\n",
    b"Host: 127.0.0.1:99999999\r\n",
    b"Host: a b\r\n",
    b"Host: user@127.0.0.1\r\n",
    b"Host: 127.0.0.1/x\r\n",
    b"Host: \xff\r\n",
    HOST + b"Origin: http://[\r\n",
    HOST + b"Origin: http://[x]\r\n",
    HOST + b"Origin: http://127.0.0.1:x\r\n",
    HOST + b"Origin: \xff\r\n",
    HOST + b"Origin: //\r\n",
    HOST + b"Origin: \r\n",
)


async def test_a_host_or_an_origin_that_is_none_is_a_400(shared):
    for headers in MALFORMED:
        for path in (b"/health", b"/v1/models", b"/nowhere"):
            request = b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\n" + headers + b"\r\n"
            answer = await sent(shared, request)
            assert answer.startswith(b"HTTP/1.1 400 "), (path, headers, answer)
            assert b"invalid_value" in answer or b"content-length: 0" in answer.lower()


async def test_names_that_are_plain_pass(shared):
    port = shared.url.rpartition(":")[2].encode()
    for host in (b"127.0.0.1", b"127.0.0.1:" + port, b"localhost:1", b"[::1]:80", b"LOCALHOST"):
        request = b"GET /health HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"
        assert (await sent(shared, request)).startswith(b"HTTP/1.1 200 "), host
