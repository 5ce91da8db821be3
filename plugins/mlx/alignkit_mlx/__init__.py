"""The engine ``mlx``: models by mlx-lm, scored, differentiated and updated by MLX (``run.engine: mlx``)."""

from alignkit_mlx.engine import MLXEngine as MLXEngine
