"""Chromium without a window, by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import pathlib
import shutil
import subprocess
import time
import urllib.request
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page.

    Attributes
    ----------
    errors : list of str
        What the page said on its console as a warning or an error, exceptions
        that it did not catch, and what it failed to load.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        import websocket  # type: ignore[import-not-found,unused-ignore]

        assert CHROMIUM is not None
        self.errors: list[str] = []
        self._calls = 0
        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = self._port(folder / "DevToolsActivePort")
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/json/list", timeout=30
            ) as answer:
                pages = [p for p in json.load(answer) if p["type"] == "page"]
            self._socket = websocket.create_connection(
                pages[0]["webSocketDebuggerUrl"], timeout=60
            )
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _port(self, path: pathlib.Path) -> int:
        for _ in range(600):
            if path.exists() and (lines := path.read_text().splitlines()):
                return int(lines[0])
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError("chromium did not start")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._calls += 1
        number = self._calls
        self._socket.send(
            json.dumps({"id": number, "method": method, "params": params})
        )
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                if params["type"] in ("error", "warning", "assert"):
                    self.errors.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                if params["entry"]["level"] in ("error", "warning"):
                    self.errors.append(str(params["entry"]))
        return message

    def open(self, url: str, width: int, height: int, dark: bool) -> None:
        """Loads a page, in a window of that size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {
                    "name": "prefers-color-scheme",
                    "value": "dark" if dark else "light",
                }
            ],
        )
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"not within time: {expression}"
            time.sleep(0.1)

    def move_to(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: pathlib.Path) -> None:
        """The whole page as a .png."""
        answer = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(answer["data"]))
