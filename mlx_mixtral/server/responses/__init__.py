"""``POST /v1/responses``: OpenAI's newer API, as far as it needs no memory of its own."""
