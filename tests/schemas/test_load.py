"""Loading configurations: overrides take precedence, and every mistake is a one-line error."""

import pytest
from pydantic import Field

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import load_config, parse_json, validate
from schemas.strict import Strict
from schemas.train_config import TrainConfig


class Leaf(Strict):
    path: str
    limit: int | None = Field(None, ge=1)


class Group(Strict):
    rate: float = 0.5
    values: list[float] = Field([1.0, 3.0])


class Config(Strict):
    leaves: list[Leaf]
    group: Group = Group()
    name: str = "unnamed"


FILE = """
leaves:
  - path: a.txt
  - {path: b.txt, limit: 3}
group:
  rate: 2e-5
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(FILE, encoding="utf-8")
    return str(path)


def message_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_the_file_and_fills_in_defaults(config_file):
    config = load_config(Config, config_file)
    assert config == Config(
        leaves=[Leaf(path="a.txt"), Leaf(path="b.txt", limit=3)], group=Group(rate=2e-5), name="unnamed"
    )


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("name=changed", lambda c: c.name, "changed"),
        ("name=a=b", lambda c: c.name, "a=b"),
        ("group.rate=1e-3", lambda c: c.group.rate, 1e-3),
        ("group.values=[1.0, 2.0]", lambda c: c.group.values, [1.0, 2.0]),
        ("leaves.1.limit=7", lambda c: c.leaves[1].limit, 7),
        ("leaves.1.limit=null", lambda c: c.leaves[1].limit, None),
        ("leaves.0={path: c.txt}", lambda c: c.leaves[0].path, "c.txt"),
        (" name = changed", lambda c: c.name, "changed"),
    ],
)
def test_an_override_wins_over_the_file(config_file, override, read, value):
    before, after = load_config(Config, config_file), load_config(Config, config_file, (override,))
    assert read(before) != value
    assert read(after) == value


def test_an_override_creates_groups_that_the_file_lacks_or_leaves_empty(tmp_path):
    for text in ("leaves: [{path: a}]", "leaves: [{path: a}]\ngroup:"):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_config(Config, str(path), ("group.rate=0.25",)).group.rate == 0.25


def test_the_last_of_two_overrides_wins(config_file):
    assert load_config(Config, config_file, ("name=first", "name=second")).name == "second"


@pytest.mark.parametrize("override", ["name", "=1", "group..rate=1", ".name=1", "name.=1"])
def test_an_override_without_key_and_value_is_refused(config_file, override):
    message = message_of(load_config, Config, config_file, (override,))
    assert message.startswith(f"--set {override}: expected dotted.key=value")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("leaves.2.limit=1", "'2' is not an index into a list of 2 entries"),
        ("leaves.-1.limit=1", "'-1' is not an index into a list of 2 entries"),
        ("leaves.first=1", "'first' is not an index into a list of 2 entries"),
        ("group.rate.deeper=1", "rate is '2e-5' in the file, not a group of settings"),
        ("name=[1", "the value is not valid YAML"),
    ],
)
def test_an_override_that_does_not_fit_the_file_is_refused(config_file, override, complaint):
    assert message_of(load_config, Config, config_file, (override,)).startswith(f"--set {override}: {complaint}")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("nmae=x", "nmae: unknown key; remove it or correct its spelling; got 'x'"),
        ("leaves.1.limt=1", "leaves.1.limt: unknown key; remove it or correct its spelling; got 1"),
        ("leaves.0={}", "leaves.0.path: this key is required and missing"),
        ("leaves.1.limit=0", "leaves.1.limit: Input should be greater than or equal to 1; got 0"),
        (
            "group.rate=fast",
            "group.rate: Input should be a valid number, unable to parse string as a number; got 'fast'",
        ),
        ("name=", "name: Input should be a valid string; got None"),
        ("name=7", "name: Input should be a valid string; got 7"),
    ],
)
def test_a_wrong_setting_is_named_with_file_key_and_values(config_file, override, complaint):
    assert message_of(load_config, Config, config_file, (override,)) == f"{config_file}: {complaint}"


def test_further_problems_are_counted(config_file):
    message = message_of(load_config, Config, config_file, ("nmae=x", "group.rat=1", "leaves.0.pth=2"))
    assert message.endswith("(and 2 more)")


def test_a_long_value_is_cut(config_file):
    message = message_of(load_config, Config, config_file, ("group=[" + "1, " * 1000 + "]",))
    assert len(message) < len(config_file) + 250
    assert message.endswith("...")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "expected a YAML mapping of settings, got NoneType"),
        (b"- 1\n", "expected a YAML mapping of settings, got list"),
        (b"just text", "expected a YAML mapping of settings, got str"),
        (b"a: [1", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"name: \xff\xfe", "not valid YAML"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, complaint):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert message_of(load_config, Config, str(path)).startswith(f"{path}: {complaint}")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    missing = tmp_path / "missing.yaml"
    assert message_of(load_config, Config, str(missing)) == (
        f"{missing}: cannot read the configuration: No such file or directory"
    )
    assert message_of(load_config, Config, str(tmp_path)).startswith(f"{tmp_path}: cannot read the configuration: ")


def test_json_is_parsed_and_validated():
    assert parse_json(Leaf, b'{"path": "a", "limit": 2}', "leaf.json") == Leaf(path="a", limit=2)


@pytest.mark.parametrize("data", [b"", b"{", b'{"path": "a"', b"\x00\xff", b"[" * 10_000, b'{"path": 1}', b"null"])
def test_bad_json_is_refused_with_the_name_of_the_file(data):
    assert message_of(parse_json, Leaf, data, "leaf.json").startswith("leaf.json: ")


def test_validate_names_its_place():
    assert message_of(validate, Leaf, {"path": "a", "limit": "x"}, "line 3") == (
        "line 3: limit: Input should be a valid integer, unable to parse string as an integer; got 'x'"
    )


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.yaml").write_text(
        "teacher: {path: ~/t}\ncorpus: {sources: [{path: ~/a}]}\noutput: {path: ~}\n".replace("path: ~}", "path: '~'}")
    )
    made = load_config(CacheConfig, str(tmp_path / "c.yaml"), ("corpus.chat_template=~/x.jinja",))
    assert made.teacher.path == "/home/me/t"
    assert made.corpus.sources[0].path == "/home/me/a"
    assert (made.output.path, made.corpus.chat_template) == ("/home/me", "/home/me/x.jinja")
    tree = "data: {cache: [{url: ~/c}], local_copies: {folder: ~/l}}\nstudent: {checkpoint: ~/s}\noutput: ~/o\n"
    (tmp_path / "t.yaml").write_text(tree)
    train = load_config(TrainConfig, str(tmp_path / "t.yaml"))
    assert [share.url for share in train.data.shares] == ["/home/me/c"]
    assert (train.data.local_copies.folder, train.student.checkpoint) == ("/home/me/l", "/home/me/s")
    assert train.output == "/home/me/o"
