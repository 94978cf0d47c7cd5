"""The command line, `decant`, or `python -m stages`: alone it lists stages and commands."""

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

import stages
import stages.commands
from pipeline.base import guard

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # guard.run prints one message for a user's mistake, a plain traceback for a bug
    help="From a transformer teacher to a phone, with proof.",
)
HELPERS = {"plans", "targets"}  # files in stages/ that are no stage


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Lists stages and commands."""
    if context.invoked_subcommand is not None:
        return
    console = Console()
    console.print("From a transformer teacher to a phone, with proof. Start with: dvc repro\n", highlight=False)
    console.print(_table("stage", "python -m stages.NAME", _stage_lines()))
    console.print(_table("command", "decant NAME --help", _command_lines()))


def _table(kind: str, how: str, lines: list[tuple[str, str]]) -> Table:
    table = Table(title=f"{kind}s ({how})", title_justify="left", box=None, show_header=False, pad_edge=False)
    for name, line in lines:
        table.add_row(f"  {name}", line)
    return table


def _stage_lines() -> list[tuple[str, str]]:
    """Stages in the order of dvc.yaml, with the first line of their file."""
    folder = Path(stages.__path__[0])
    order = [
        "machine", "prepare", "floors", "teach", "reference", "general", "distill", "quantize", "convert", "evaluate",
        "examine", "benchmark", "tokenizers", "report", "package", "gate",
    ]  # fmt: skip
    found = {m.name for m in pkgutil.iter_modules([str(folder)]) if not m.ispkg} - HELPERS - {"__main__"}
    names = [name for name in order if name in found] + sorted(found - set(order))
    return [(name, first_line(folder / f"{name}.py")) for name in names]


def _command_lines() -> list[tuple[str, str]]:
    folder = Path(stages.commands.__path__[0])
    return [(m.name, first_line(folder / f"{m.name}.py")) for m in pkgutil.iter_modules([str(folder)])]


def first_line(file: Path) -> str:
    """The first line of a module's docstring, without importing it."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


def _register_commands() -> None:
    for module in pkgutil.iter_modules(stages.commands.__path__):
        command = importlib.import_module(f"stages.commands.{module.name}")
        app.command(name=module.name, help=_help(command.__doc__ or ""))(command.command)


def _help(docstring: str) -> str:
    """A module's docstring with the mark that keeps click from re-wrapping its examples."""
    return docstring.replace("\n\n    ", "\n\n\b\n    ")


def main() -> None:
    """Entry point of the console script."""
    _register_commands()
    # standalone_mode=False hands errors to guard.run, which knows the exit statuses.
    guard.run(_invoke)


def _invoke() -> int:
    try:
        result = app(standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return 130
    except Exception as error:
        # Typer vendors or imports click depending on its version; a usage error has these two whatever its module.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            print(f"error: {error.format_message().rstrip('.')}; see `decant --help`", file=sys.stderr)
            return 2
        raise
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
