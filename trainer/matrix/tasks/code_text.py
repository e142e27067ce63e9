"""From what a model wrote to a program: HumanEval's rule where a function ends, and code in the replies of chats."""

import re

from teacher_cache.curation.code_rule import fenced
from teacher_cache.generated.verification_chain import THOUGHT_END

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # arXiv 2107.03374, section 2.2
LABELS = ("", "python", "py", "python3")


def continued(prompt: str, text: str) -> str:
    """The program of a model that continues a prompt."""
    return prompt + text


def replied(prompt: str, text: str, function: str) -> str:
    """The program of a chat's reply: of its code blocks the first that defines the function, else the first.

    A block without the function's head continues the prompt. A reply without blocks is all code.
    """
    text = text.rpartition(THOUGHT_END)[2]
    blocks = [code for label, code in fenced(text) if label in LABELS] or [text]
    defines = re.compile(rf"^\s*(async\s+)?def\s+{re.escape(function)}\b", re.MULTILINE)
    code = next((block for block in blocks if defines.search(block)), None)
    return prompt + blocks[0] if code is None else code
