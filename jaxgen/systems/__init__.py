"""Systems that several experiments are made of."""
