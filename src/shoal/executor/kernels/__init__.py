"""The matrix products: our C kernels, and what stands in for them."""
