"""Parse untrusted YAML with limits on bytes, depth, and alias expansion."""

from typing import Any

import yaml

from schemas.errors import UserError

MAX_BYTES = 1 << 18  # PyYAML parses about 100 KB per second
MAX_DEPTH = 50
MAX_NODES = 100_000  # with aliases expanded


class _Loader(yaml.SafeLoader):
    """Counts nodes, with aliases expanded, during composition, before anything is actually expanded."""

    aliases = True

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._behind: dict[str, int] = {}  # number of nodes, by anchor

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            anchor = self.peek_event().anchor
            if not self.aliases:
                raise yaml.YAMLError(f"alias *{anchor} is not allowed here")
            self._count(self._behind.get(anchor, 0))
            return super().compose_node(parent, index)
        anchor, before = self.peek_event().anchor, self._nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        self._count(1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._behind[anchor] = self._nodes - before
        return node

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values, aliases included")


class _ForeignLoader(_Loader):
    aliases = False


def parse_yaml(text: str | bytes, where: str, aliases: bool = False) -> Any:
    """Parse the YAML ``text``. Raises UserError, ``WHERE not valid YAML: …``, also if it exceeds a limit.

    ``aliases``: whether they are allowed, as in the user's own configuration.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
        tree = yaml.load(decoded, _Loader if aliases else _ForeignLoader)  # both are safe loaders
        _check_text(tree)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # PyYAML: ValueError on impossible dates
        raise UserError(f"{where} not valid YAML: {error}") from None
    return tree


def _check_text(tree: Any) -> None:
    """Raise ValueError for text that cannot occur in paths or names: zero bytes, lone surrogates."""
    if isinstance(tree, str):
        if "\0" in tree:
            raise ValueError(f"a zero byte in {tree[:40]!r}")
        try:
            tree.encode()
        except UnicodeEncodeError:
            raise ValueError(f"lone surrogate in {tree[:40]!r}") from None
    elif isinstance(tree, dict):
        for key, value in tree.items():
            _check_text(key)
            _check_text(value)
    elif isinstance(tree, list | tuple | set):
        for value in tree:
            _check_text(value)
