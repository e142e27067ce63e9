"""What a page's policy allows."""

import base64
import hashlib

from teacher_cache.pages.page_policy import page_policy


def test_only_this_style_and_script_are_allowed() -> None:
    style = base64.b64encode(hashlib.sha256(b"p { color: red }").digest()).decode()
    script = base64.b64encode(hashlib.sha256(b"f()").digest()).decode()
    around = "default-src 'none'; {}; base-uri 'none'; form-action 'none'"
    allowed = f"style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:"
    assert page_policy("p { color: red }", "f()", "img-src data:") == around.format(allowed)
    assert page_policy("p { color: red }") == around.format(f"style-src 'sha256-{style}'")
