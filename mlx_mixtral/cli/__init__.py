"""The command line: parse, call the library, print."""

import io
import os
import sys


def main() -> None:
    """The ``mixtral-mlx`` console script.

    Exit codes: 0; 1 for an error that a person can mend; 2 for a bad option or value;
    130 after Ctrl-C; 141 when whoever read standard output went away (as for SIGPIPE).
    """
    _open_standard_streams()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the terminal shows ^C in the middle of a line
        code = 130
    except BrokenPipeError:
        # The interpreter flushes once more on its way out: into the void this time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    except OSError as error:  # disk full, permission denied
        code = _tell(_describe(error), 1)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Make the three streams usable, whatever the caller left of them."""
    # After `<&-` the next file opened would get descriptor 0, which MLX takes for a failure.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the locale is not UTF-8


def _run(arguments: list[str]) -> int:
    """Run one command; errors that a person can mend are told here."""
    # Imported here, so that Ctrl-C meanwhile is met by main().
    import typer

    from mlx_mixtral.cli.app import app
    from mlx_mixtral.errors import MixtralError

    # Not `app()`: typer would answer Ctrl-C and closed pipes itself, and errors in three lines.
    command = typer.main.get_command(app)
    try:
        with command.make_context("mixtral-mlx", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except MixtralError as error:
        return _tell(str(error), error.exit_code)
    except typer.TyperException as error:
        asked = getattr(error, "ctx", None)
        name = asked.command_path if asked else "mixtral-mlx"
        return _tell(f"{error.format_message()} (see {name} --help)", error.exit_code)
    return 0


def _tell(message: str, code: int) -> int:
    from mlx_mixtral.cli.printable import printable

    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _describe(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename is not None else what
