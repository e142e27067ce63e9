from schemas.difference import differences


def test_differences_are_named_by_dotted_keys() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "same": [{"x": 1}]}
    now = {"a": {"b": 2, "c": [1, 3]}, "d": {"e": 1}, "same": [{"x": 1}], "new": 0}
    assert list(differences("top", before, now)) == [
        ("top.a.b", 1, 2),
        ("top.a.c.1", 2, 3),
        ("top.d", None, {"e": 1}),
        ("top.new", None, 0),
    ]
    assert list(differences("top", [1], [1, 2])) == [("top", [1], [1, 2])]
