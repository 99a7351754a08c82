"""Which reader a folder or file is for."""

from pathlib import Path

from convert.readers import Source
from mlx_mixtral.errors import UsageError
from mlx_mixtral.jsonfile import read_json, read_json_if_there


def open_source(path: Path, only: str | None = None) -> Source:
    """The model at ``path``, in whatever form; headers are read, and no weights.

    ``path`` is a folder, or one of its files of weights. ``only`` picks one of several GGUF
    files in a folder, by name or pattern.

    Raises:
        UsageError: there is nothing at ``path``, no weights, or several models.
        ModelError: the model is damaged, incomplete or of another architecture.
    """
    path = path.expanduser()
    if not path.exists():
        raise UsageError(f"there is nothing at {path}; give a model's folder or file")
    if path.is_file():
        return _open_file(path)
    if only:
        return _open_file(_single([*path.glob(only)], path))
    return _open_folder(path)


def _open_file(file: Path) -> Source:
    if file.suffix == ".gguf":
        from convert.readers.gguf import read_gguf

        return read_gguf(file)
    if file.name.startswith("consolidated") or file.suffix in (".pth", ".pt"):
        from convert.readers.native import read_native

        return read_native(file)
    return _open_folder(file.parent)


def _open_folder(folder: Path) -> Source:
    """A folder may hold several forms of the same model: the first of these that is there."""
    if method := _method(folder):
        return _open_quantized(folder, method)
    if _any(folder, "model*.safetensors", "weights*.safetensors"):
        from convert.readers.safetensors import read_folder

        return read_folder(folder)
    if _any(folder, "weights*.npz"):
        from convert.readers.npz import read_npz

        return read_npz(folder)
    if _any(folder, "consolidated*", "*.pth", "*.pth-split*"):
        from convert.readers.native import read_native

        return read_native(folder)
    if found := [file for file in folder.glob("*.gguf") if not _is_later_piece(file)]:
        return _open_file(_single(found, folder))
    if _any(folder, "qmodel.pt"):
        raise UsageError(
            f"{folder} holds HQQ's qmodel.pt, whose layout changed from version to version; "
            f"convert the 16-bit original instead"
        )
    if _any(folder, "*.bin"):
        raise UsageError(
            f"{folder} holds pytorch_model*.bin, which can hold code; fetch the same model's "
            f"safetensors instead"
        )
    raise UsageError(f"{folder} holds no weights; give the folder that holds *.safetensors files")


def _open_quantized(folder: Path, method: str) -> Source:
    if method == "gptq":
        from convert.readers.gptq import read_gptq

        return read_gptq(folder)
    if method == "awq":
        from convert.readers.awq import read_awq

        return read_awq(folder)
    if method == "hqq":
        from convert.readers.hqq import read_hqq

        return read_hqq(folder)
    raise UsageError(
        f"{folder} is quantized by {method!r}, which this program does not read; "
        f"convert the 16-bit original instead"
    )


def _method(folder: Path) -> str:
    """``gptq``, ``awq``, ``hqq`` or another, where config.json or a file beside it says so."""
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (folder / name).is_file():
            return str(read_json(folder / name).get("quant_method") or method)
    settings = read_json_if_there(folder / "config.json").get("quantization_config")
    return str(settings.get("quant_method") or "") if isinstance(settings, dict) else ""


def _any(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _is_later_piece(file: Path) -> bool:
    stem, _, count = file.stem.rpartition("-of-")
    return count.isdecimal() and not stem.endswith("-00001")


def _single(found: list[Path], folder: Path) -> Path:
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{folder} holds no such file")
    names = ", ".join(sorted(file.name for file in found))
    raise UsageError(f"{folder} holds several models ({names}); name one of the files instead")
