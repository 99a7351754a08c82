"""``python -m mlx_mixtral`` is ``mixtral-mlx``."""

from mlx_mixtral.cli import main

if __name__ == "__main__":
    main()
