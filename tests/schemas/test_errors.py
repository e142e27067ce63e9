from schemas.errors import UserError


def test_a_message_is_always_one_line():
    assert str(UserError("first\n   second\tthird ")) == "first second third"
