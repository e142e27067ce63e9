"""Content security policy of a self-contained page: only its own style and script, allowed by hash."""

import base64
import hashlib


def page_policy(style: str, script: str = "", *more: str) -> str:
    """The policy for ``style`` and ``script`` (none if empty), without network access; ``more``: further directives."""
    allowed = [f"style-src '{_hash(style)}'", *([f"script-src '{_hash(script)}'"] if script else []), *more]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
