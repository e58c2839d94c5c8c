"""A dashboard over folders of the test, and a headless Chromium to look at it."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import uvicorn

from echo_lm.orchestration.dashboard.app import make_app

CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def serve():
    """`serve(runs, studies)` starts a dashboard in a thread and returns its address."""
    servers = []

    def start(runs: Path, studies: Path) -> str:
        app = make_app(runs, studies, ["127.0.0.1"])
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of the system: `make test` installs one, or ECHO_LM_CHROMIUM names it."""
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("ECHO_LM_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert executable, "no Chromium here: run `make chromium`, or name one in ECHO_LM_CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page of its own; errors and warnings of its scripts, and requests that leave the machine, fail the test."""
    context = browser.new_context(viewport={"width": 1320, "height": 900})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: problems.append(request.url) if "//127.0.0.1:" not in request.url else None)
    yield page
    context.close()
    assert not [line for line in problems if not line.startswith("blob:")]
