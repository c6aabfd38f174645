"""Numbers from stored predictions: numpy in, floats out; torch is not needed."""
