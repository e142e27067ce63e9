import json

from benchmarks.support.corpus import hold_out, human_eval_chats, standard_library, write_chats, write_code


def test_training_and_validation_sides_are_disjoint() -> None:
    training, held_out = hold_out(list(range(100)))
    assert len(held_out) == 12
    assert sorted(training + held_out) == list(range(100))


def test_modules_are_cut_at_a_line_end(tmp_path) -> None:
    modules = standard_library()[:3]
    total = write_code(tmp_path / "code", modules, max_characters=500)
    texts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "code").iterdir()}
    assert set(texts) == {module.name for module in modules}
    assert total == sum(map(len, texts.values()))
    for module in modules:
        assert module.read_text(encoding="utf-8").startswith(texts[module.name])
        assert 0 < len(texts[module.name]) <= 500
        assert texts[module.name].endswith("\n")


def test_every_problem_becomes_a_chat_whose_reply_is_code(tmp_path) -> None:
    chats = human_eval_chats()
    assert len(chats) == 164
    for chat in chats:
        user, assistant = chat["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        code = assistant["content"].removeprefix("```python\n").removesuffix("\n```")
        compile(code, "reply", "exec")
        assert code.splitlines()[0] in user["content"]
    write_chats(tmp_path / "chats.jsonl", chats)
    assert [json.loads(line) for line in (tmp_path / "chats.jsonl").open()] == chats
