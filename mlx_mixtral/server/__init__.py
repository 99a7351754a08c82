"""Many conversations at once with one loaded model."""
