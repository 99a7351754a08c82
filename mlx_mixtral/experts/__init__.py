"""Where experts come from. Each kind is a callable (tokens [T, D], indices [T, K]) -> [T, K, D]."""
