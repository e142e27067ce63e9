"""Base classes of all commands: options, help, and error handling. An error is one line on stderr; exit statuses are

========  ==============================================================================================
0         success
1         problems were found (``cache-tools verify``)
2         bad input, or wrong usage
3         a file of a cache is damaged
4         no space: full disk, exhausted quota
5         no permission: modes, credentials
6         a store or the network does not answer
7         another process holds the place, or has changed it
8         limits of the machine: open files, memory, a failing disk
70        a bug in this program
128 + n   ended by signal n: 129 SIGHUP, 130 Ctrl-C, 141 the reader of the output has exited, 143 SIGTERM
========  ==============================================================================================
"""

import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from schemas.errors import UNEXPECTED, MachineError, UserError, printable
from schemas.failures import failure, os_error_in, reason
from teacher_cache.logs import configure_logging
from teacher_cache.stop_request import handling

TRACEBACK = "SHOW_TRACEBACK"  # environment variable: print tracebacks, for debugging this program
STATUSES = (
    "Exit status: 0 success, 1 problems found (verify), 2 bad input, 3 damaged cache, 4 no space, 5 no permission, 6 "
    "store or network, 7 held or changed by another process, 8 limits of the machine, 70 a bug in this program, 128 + "
    "n ended by signal n (130 Ctrl-C, 143 SIGTERM)."
)
DISTRIBUTION = "offline-distillation"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}
_VERBOSE = f"{__name__}.verbose"  # key in click's ``Context.meta``, which a group shares with its commands


class Stopped(BaseException):
    """Raised in the main thread by a signal that ends the command; cleanup runs as the exception propagates."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Command(click.Command):
    """A command with ``--verbose`` and with examples at the end of ``--help``."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **{"context_settings": dict(_CONTEXT), **settings})
        self.examples = tuple(examples)
        self.params.append(_verbose_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Set up logging, then run."""
        configure_logging(ctx.meta.get(_VERBOSE, False))
        return super().invoke(ctx)

    def get_short_help_str(self, limit: int = 0) -> str:
        """The first sentence of the help, untruncated, for the list of a group's commands."""
        return super().get_short_help_str(limit=1000)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class Program(click.Group):
    """A group of commands; every error ends it with one line and an exit status as documented above."""

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **{"context_settings": dict(_CONTEXT), "epilog": STATUSES, **settings})
        self.examples = tuple(examples)
        version = click.version_option(package_name=DISTRIBUTION, message="%(prog)s %(version)s")
        self.params += [_verbose_option(), *_options_of(version)]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and the exit statuses."""
        _write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and exit with its status; with ``standalone_mode`` off, as ``click.Group.main``."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError):  # file names may be undecodable, terminals not UTF-8
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            with _stopped_by_signals():
                self._run(sys.argv[1:] if args is None else list(args), prog_name, complete_var, extra)
                sys.stdout.flush()
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException as error:
            status = _report(error)
        _exit(status)

    def _run(self, args: list[str], prog_name: str | None, complete_var: str | None, extra: dict[str, Any]) -> None:
        """``click.Group.main`` without its error handling, which ignores a closed output."""
        prog_name = prog_name or os.path.basename(sys.argv[0])
        self._main_shell_completion(extra, prog_name, complete_var)
        try:
            with self.make_context(prog_name, _with_home(args), **extra) as context:
                self.invoke(context)
        except click.exceptions.Exit as ended:
            sys.stdout.flush()
            sys.exit(ended.exit_code)


def _verbose_option() -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_VERBOSE] = value or ctx.meta.get(_VERBOSE, False)

    says = "Log details, and show warnings and progress bars of libraries."
    return click.Option(["--verbose"], is_flag=True, expose_value=False, callback=remember, help=says)


def _options_of(decorator: Callable[[Callable[..., Any]], Any]) -> list[click.Parameter]:
    """The options that one of click's decorators adds."""
    return decorator(click.Command(None)).params


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _with_home(args: list[str]) -> list[str]:
    """Arguments with ``~`` expanded also where shells do not: in quotes, and after ``--option=``."""
    return [re.sub(r"^(--[\w-]+=)?(~(?=/|$))", lambda m: (m[1] or "") + os.path.expanduser("~"), arg) for arg in args]


def _report(error: BaseException) -> int:
    """Print the error that ended the command as one line; returns the exit status."""
    if isinstance(error, click.ClickException):
        error.message = "\n".join(map(printable, error.message.splitlines()))  # type: ignore[misc]  # quotes arguments
        with suppress(OSError):
            error.show()
        return error.exit_code
    if os.environ.get(TRACEBACK):
        with suppress(OSError):
            traceback.print_exception(error)
    if isinstance(error, click.Abort):
        if not isinstance(error.__cause__ or error.__context__, EOFError):
            return _say("stopped by Ctrl-C", 128 + signal.SIGINT)
        return _say("error: standard input ended before the answer", UserError.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return _say("stopped by Ctrl-C", 128 + signal.SIGINT)
    if isinstance(error, Stopped):
        return _say(f"stopped by {signal.Signals(error.number).name}", 128 + error.number)
    if not isinstance(error, OSError | UserError):
        error = os_error_in(error) or error
    if isinstance(error, OSError | MemoryError) and not isinstance(error, UserError):
        if _was_output(error):
            if getattr(error, "errno", None) == errno.EPIPE:
                return _say("standard output: its reader has exited", 128 + signal.SIGPIPE)
            error = failure(error, "standard output: cannot be written")
        elif isinstance(error, MemoryError):
            error = MachineError(
                f"the machine is out of memory{_detail(error)}; use smaller settings or a larger machine"
            )
        else:
            error = failure(error, str(error.filename) if error.filename else "a file or connection cannot be used")
    if isinstance(error, UserError):
        return _say(f"error: {error}", error.exit_code)
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {os.path.basename(frame.filename)}:{frame.lineno}" for frame in where)
    found = UserError(
        f"{type(error).__name__}{place}: {reason(error)[:300]}: a bug in this program; please report it with the "
        f"traceback that {TRACEBACK}=1 shows"
    )
    return _say(f"error: {found}", UNEXPECTED)


def _detail(error: BaseException) -> str:
    return f": {str(error)[:200]}" if str(error) else ""


def _say(line: str, status: int) -> int:
    with suppress(OSError, ValueError):
        click.echo(line, err=True)
    return status


def _was_output(error: BaseException) -> bool:
    """Whether the error was raised while printing."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    name = "" if place is None else str(place.tb_frame.f_globals.get("__name__"))
    return name == __name__ or name.partition(".")[0] in ("click", "rich")


def _exit(status: int) -> NoReturn:
    """Flush and exit; a broken output is reported once."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError as error:
            if number == 1 and status == 0:
                status = _report(error)
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:
            pass
    sys.exit(status)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise ``Stopped``; signals that are ignored (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second signal does not interrupt cleanup
        raise Stopped(number)

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # errors of abandoned requests
    with handling(_SIGNALS, stop):
        yield
