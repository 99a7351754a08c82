"""Names a person types for a model: ``demo``, a folder, or the name of an installed one.

Installed models lie in a folder of the user's data directory (``MIXTRAL_MLX_HOME`` moves
it), one folder a model. A Hugging Face name (``owner/name``) finds what is already in the
Hugging Face cache; nothing is downloaded here.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlx_mixtral.errors import ModelError

DEMO = "demo"

# What a model takes to run; the rest of a repository need not have been downloaded.
NEEDED = ["*.json", "*.jinja", "tokenizer.model*", "model*.safetensors", "weights*.safetensors"]


def models_home() -> Path:
    """The folder of installed models; it need not exist."""
    if home := os.environ.get("MIXTRAL_MLX_HOME"):
        return Path(home).expanduser() / "models"
    import platformdirs

    return Path(platformdirs.user_data_dir("mixtral-mlx")) / "models"


def sources_home() -> Path:
    """The folder of what was fetched only to be converted; it need not exist."""
    return models_home().parent / "sources"


def installed() -> dict[str, Path]:
    """Name -> folder of the installed models, the most recently installed first."""
    home = models_home()
    folders = [p for p in home.iterdir() if is_model(p)] if home.is_dir() else []
    folders.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    return {p.name: p for p in folders}


def is_model(folder: Path) -> bool:
    """Whether a folder looks like a model's: it has a configuration."""
    return (folder / "config.json").is_file() or (folder / "params.json").is_file()


def default_name() -> str:
    """The most recently installed model, or the demo where none is installed."""
    return next(iter(installed()), DEMO)


def resolve(name: str | Path) -> Path:
    """The folder of the model that ``name`` means.

    Raises:
        ModelError: there is none; the message lists what there is.
    """
    text = str(name)
    if text == DEMO:
        return Path(__file__).parent / "demo"
    here = installed()
    if text in here:
        return here[text]
    if (path := _path(text)) is not None:
        if path.is_dir():
            return path
        raise ModelError(f"{text} is a file; name the folder that holds config.json and weights")
    if (cached := _in_hub_cache(text)) is not None:
        return cached
    known = ", ".join([DEMO, *here])
    raise ModelError(f"no model {text!r}: not a folder, and the installed ones are: {known}")


def _path(text: str) -> Path | None:
    """What lies at ``text`` as a path, if anything does."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # too long for a path; the home of nobody known
        return None


def _in_hub_cache(name: str) -> Path | None:
    """The newest snapshot of a Hugging Face repository that an earlier download left."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=NEEDED))
    except IncompleteSnapshotError:
        raise ModelError(
            f"the download of {name} is incomplete; finish it with: hf download {name}"
        ) from None
    except (LocalEntryNotFoundError, HFValidationError):
        return None
