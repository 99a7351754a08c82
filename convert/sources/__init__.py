"""Where models come from: a folder, Hugging Face, a magnet link. Each ends as files on disk."""
