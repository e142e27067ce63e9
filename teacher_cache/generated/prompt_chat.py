"""The chat of a prompt, from a file that may be anybody's."""

from typing import Any

from schemas.chat_record import ChatRecord
from schemas.load import parse_cache_file
from teacher_cache.generated.reply_files import Prompt

MAX_VALUES = 1 << 20


def prompt_chat(prompt: Prompt, where: str) -> ChatRecord:
    """Parse the record of a prompt that is a chat. Raises CorruptCacheError, naming ``where``."""
    return parse_cache_file(ChatRecord, prompt.chat, where, MAX_VALUES)


def prompt_messages(prompt: Prompt, record: ChatRecord) -> list[dict[str, Any]]:
    """The messages that were rendered as the prompt."""
    rendered = prompt.prompt.encode()
    return [message.restored(rendered) for message in record.messages]
