import pytest

from trainer.matrix.tasks.asked_text import cut
from trainer.matrix.tasks.code_text import STOP, continued, replied

PROMPT = "def f(x):\n    '''One more.'''\n"
BODY = "    return x + 1\n"
WHOLE = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize("rest", ["\ndef g(): pass", "\nclass A: pass", "\n# done", "\nif x: pass", "\nprint(f(1))"])
def test_a_function_ends_where_something_else_begins(rest: str) -> None:
    assert continued(PROMPT, cut(f"    # a note\n{BODY}{rest}\ndef h(): pass", STOP)) == f"{PROMPT}    # a note\n{BODY}"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (f"Here:\n\n```python\n{WHOLE}```\nDone.", WHOLE),
        (f"```\n{WHOLE}```", WHOLE),
        (f"```py\nimport math\n{WHOLE}", "import math\n" + WHOLE),  # without an end
        (f"```python\nprint(1)\n```\n\n```python\n{WHOLE}```", WHOLE),
        (f"```json\n{{}}\n```\n\n```python\n{WHOLE}```", WHOLE),
        (f"<think>```python\ndef f(): wrong\n```</think>\n```python\n{WHOLE}```", WHOLE),
        (f"```python\nasync {WHOLE}```", f"async {WHOLE}"),
        (f"```python\n{BODY}```", PROMPT + BODY),
        (f"```python\ndef ff(): pass\n```\n```python\n{WHOLE}```", WHOLE),
        (WHOLE, WHOLE),
        (BODY, PROMPT + BODY),
        ("", PROMPT),
    ],
)
def test_code_of_a_reply(text: str, program: str) -> None:
    assert replied(PROMPT, text, "f") == program
