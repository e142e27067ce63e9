import click
from click.testing import CliRunner

from schemas.errors import CorruptCacheError, UserError
from teacher_cache.command import set_option, user_errors


@click.command()
@click.argument("kind")
@set_option
@user_errors
def command(kind: str, overrides: tuple[str, ...]) -> None:
    if kind == "user":
        raise UserError("a file:\n  is  wrong")
    if kind == "corrupt":
        raise CorruptCacheError("shard-000000.json: broken")
    click.echo(",".join(overrides))


def test_a_user_error_is_one_line_and_status_2() -> None:
    result = CliRunner().invoke(command, ["user"])
    assert (result.exit_code, result.stderr) == (2, "error: a file: is wrong\n")


def test_a_corrupt_cache_is_a_user_error() -> None:
    assert CliRunner().invoke(command, ["corrupt"]).stderr == "error: shard-000000.json: broken\n"


def test_overrides_come_in_order() -> None:
    result = CliRunner().invoke(command, ["fine", "--set", "a=1", "--set", "b.c=2"])
    assert (result.exit_code, result.stdout) == (0, "a=1,b.c=2\n")
