"""The commands of ``mixtral-mlx``, one file each."""

from importlib.metadata import version
from typing import Annotated

import typer

from mlx_mixtral.before_mlx import before_mlx
from mlx_mixtral.cli.bench import bench
from mlx_mixtral.cli.chat import chat
from mlx_mixtral.cli.convert import convert
from mlx_mixtral.cli.evaluate import evaluate
from mlx_mixtral.cli.generate import generate
from mlx_mixtral.cli.inspect import inspect
from mlx_mixtral.cli.models import app as models
from mlx_mixtral.cli.plan import plan
from mlx_mixtral.cli.pull import pull
from mlx_mixtral.cli.quality import quality
from mlx_mixtral.cli.recipes import recipes
from mlx_mixtral.cli.serve import serve
from mlx_mixtral.cli.verify import verify

app = typer.Typer(
    help="Run Mistral's mixture-of-experts models on a Mac.",
    rich_markup_mode=None,  # rich's help costs a tenth of a second
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if show_version:
        print(version("mlx-mixtral"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif context.invoked_subcommand != "bench":  # which tries settings of its own with --tune
        before_mlx()


app.command()(chat)
app.command()(generate)
app.command()(serve)
app.command()(pull)
app.command()(inspect)
app.command()(convert)
app.command()(recipes)
app.command()(plan)
app.command()(verify)
app.command()(bench)
app.command()(quality)
app.command("eval")(evaluate)
app.add_typer(models, name="models")
