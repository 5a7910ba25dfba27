"""A client of graphs: tensors in, tensors out, over whoever serves their segments."""
