"""Pages in a real browser, and what happens on them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from support.browser import NAMES, browser, find_chromium


@contextmanager
def started_browser() -> Iterator[Browser]:
    """Skips the test where there is no Chromium; under CI that is a failure."""
    path = find_chromium()
    if path is None:
        reason = f"none of {', '.join(NAMES)} is on the PATH; apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with browser(path) as found:
        yield found


@dataclass
class Opened:
    """A page and what happened on it."""

    page: Page
    problems: list[str] = field(default_factory=list)  # errors, warnings, violations of the content security policy
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1280, scheme: str = "light") -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.problems.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.problems.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.add_init_script(
        "window.violations = [];"
        "document.addEventListener('securitypolicyviolation', e => window.violations.push(e.violatedDirective))"
    )
    try:
        found.page.goto(file.resolve().as_uri())
        yield found
    finally:
        context.close()
