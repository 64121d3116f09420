"""A real browser, and a real optuna-dashboard for it to open."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.services.conftest import postgres_server, postgres_storage  # noqa: F401


@pytest.fixture
def page(missing):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        missing("Chromium is not installed")
    if importlib.util.find_spec("playwright") is None:
        missing("the package playwright is not installed (extra 'browser')")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--enable-unsafe-swiftshader",  # WebGL without a graphics card
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.errors = []
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: (page.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        yield page
        browser.close()


@pytest.fixture
def dashboard(missing, tmp_path):
    """Start optuna-dashboard on a storage URL; returns its address."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        missing("optuna-dashboard is not installed (extra 'dashboard')")
    servers = []

    def start(storage):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        code = "from optuna_dashboard._cli import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", code, storage, "--host", "127.0.0.1", "--port", str(port)]
        log = tmp_path / f"dashboard-{port}.log"
        with log.open("w") as file:
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        servers.append(server)
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            try:
                urllib.request.urlopen(address, timeout=60).close()
                return address
            except OSError:
                time.sleep(0.2)
        raise ChildProcessError(f"optuna-dashboard did not start: {log.read_text()}")

    yield start
    for server in servers:
        server.kill()
        server.wait()
