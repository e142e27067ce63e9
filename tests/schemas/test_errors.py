from schemas.errors import UserError


def test_a_message_is_always_one_line():
    assert str(UserError("first\n   second\tthird ")) == "first second third"


def test_control_characters_in_messages_are_escaped():
    assert str(UserError("a\x1b[2Jb\x00c\u202ed")) == r"a\x1b[2Jb\x00c\u202ed"
    assert str(UserError("σ 数 é 🙂")) == "σ 数 é 🙂"
