"""Functions of one position that stand where a norm would: dynamic tanh and its successors."""
