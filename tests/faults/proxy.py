"""An unreliable way to an S3 server: some requests are answered with 503, some answers take their time.

``python -m tests.faults.proxy PORT UPSTREAM SEED``
"""

import asyncio
import random
import sys

from aiohttp import ClientSession, web
from yarl import URL

REFUSED, SLOW = 0.15, 0.1
"""Shares of the requests."""
PAUSE_S = 2.0
SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


class UnreliableProxy:
    """Passes requests on as they are; signatures stay valid because the Host header does too."""

    def __init__(self, upstream: str, seed: int) -> None:
        self.upstream, self.rng = upstream, random.Random(seed)

    async def start(self, app: web.Application) -> None:
        self.client = ClientSession(auto_decompress=False)

    async def stop(self, app: web.Application) -> None:
        await self.client.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.rng.random() < REFUSED:
            return web.Response(status=503, text=SLOW_DOWN, content_type="application/xml")
        url = URL(self.upstream + request.raw_path, encoded=True)
        passed_on = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        async with self.client.request(
            request.method, url, headers=passed_on, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        if content:
            if self.rng.random() < SLOW:
                await response.write(content[: len(content) // 2])
                await asyncio.sleep(PAUSE_S)
                content = content[len(content) // 2 :]
            await response.write(content)
        await response.write_eof()
        return response


def main(port: int, upstream: str, seed: int) -> None:
    proxy = UnreliableProxy(upstream, seed)
    app = web.Application(client_max_size=2**30)
    app.on_startup.append(proxy.start)
    app.on_cleanup.append(proxy.stop)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
