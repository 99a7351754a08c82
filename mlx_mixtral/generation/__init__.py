"""From a prompt's tokens to an answer's: prefill, decode, sampling, stopping."""
