"""Feed-forwards: Koopman MLP and SwiGLU."""
