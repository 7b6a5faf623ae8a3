"""A server from its first request to its last: told to stop, it lets replies end, and ends those that take too long."""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from scripts.serve.engine import Engine
from scripts.serve.openai import application

PLAIN = {"loop": "asyncio", "http": "h11", "ws": "none", "lifespan": "off", "proxy_headers": False}
QUIET = {"access_log": False, "server_header": False, "log_level": "error"}
AFTER = 5  # seconds for the last bytes to go out


class Server(uvicorn.Server):
    """Stops when it is told to, by `stop` or by a signal, which is no reason to end with a signal's exit code."""

    def __init__(self, engine: Engine, token: str | None = None, loopback: bool = True):
        self.engine = engine
        settings: dict = {**PLAIN, **QUIET, "timeout_graceful_shutdown": int(engine.limits.grace) + AFTER}
        super().__init__(uvicorn.Config(application(engine, token, loopback), **settings))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for sign in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(sign, self.stop)
        yield

    def stop(self) -> None:
        """Asked twice, it waits no longer."""
        self.engine.close(0 if self.should_exit else self.engine.limits.grace)
        self.should_exit = True

    def until_stopped(self, sock: socket.socket) -> None:
        asyncio.run(self.serve(sockets=[sock]))
        self.engine.close(0)
        self.engine.thread.join()
