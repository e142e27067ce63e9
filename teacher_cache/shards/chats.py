"""The record of a chat, from an untrusted cache."""

from schemas.chat_record import ChatRecord
from schemas.errors import CorruptCacheError
from schemas.load import parse_cache_file
from teacher_cache.records import TokenSample

MAX_VALUES = 1 << 20
MOST_SAID = 8  # times the text's size; spans of one message may lie in one another


def chat_of(sample: TokenSample, where: str) -> ChatRecord | None:
    """Parse a sample's chat record and check it against the text. Raises CorruptCacheError, naming ``where``."""
    if not sample.chat:
        return None
    chat = parse_cache_file(ChatRecord, sample.chat, f"{where}: chat", MAX_VALUES)
    size = len(sample.text.encode())
    for number, message in enumerate(chat.messages):
        for key, (_, end) in message.spans.items():
            if end > size:
                raise CorruptCacheError(f"{where}: chat: message {number}: {key} ends at byte {end} of {size}")
    said = sum(end - start for message in chat.messages for start, end in message.spans.values())
    if said > MOST_SAID * size:
        raise CorruptCacheError(f"{where}: chat: messages of {said} bytes in all, in a text of {size}")
    return chat
