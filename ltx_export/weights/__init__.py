"""Files of weights, placed where the graphs find them: linked, copied, or rewritten tensor by tensor."""
