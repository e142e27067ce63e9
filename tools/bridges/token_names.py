"""Token ids of tokens that are named by text or bytes."""

import ast
import re
from typing import TYPE_CHECKING

from teacher_cache.corpus.token_spans import ByteTokenizer
from tools.bridges.logprob_lines import Name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BY_ID = re.compile(r"token_id:(\d{1,9})")  # of vLLM with return_tokens_as_token_ids
_BY_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")  # of OpenAI, where a token is no valid UTF-8
NO_TOKEN = 1 << 31  # above the ids of any vocabulary


class TokenNames:
    """Finds the one token of a vocabulary that has a name."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", spelling: ByteTokenizer) -> None:
        self._ids: dict[bytes, int] = {}
        self._ambiguous: set[bytes] = set()
        for index in range(len(spelling.table.length_V)):
            self._add(spelling.table.token(index), index)
        for index, token in tokenizer.added_tokens_decoder.items():
            if token.special:
                self._add(token.content.encode(), index)

    def _add(self, name: bytes, index: int) -> None:
        if name and self._ids.setdefault(name, index) != index:
            self._ambiguous.add(name)

    def id_of(self, name: Name) -> int | None:
        """The token's id; None if no token, or more than one, has the name."""
        if isinstance(name, int):
            return max(-1, min(name, NO_TOKEN))  # ids are checked where all are, as one array
        if isinstance(name, str):
            if found := _BY_ID.fullmatch(name):
                return int(found[1])
            found = _BY_BYTES.fullmatch(name)
            name = ast.literal_eval(f"b'{found[1]}'") if found else name.encode("utf-8", "surrogatepass")
        return None if name in self._ambiguous else self._ids.get(name)
