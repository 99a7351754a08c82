"""Conversion: reads foreign weights and writes the one model folder that mlx_mixtral runs."""
