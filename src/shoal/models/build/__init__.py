"""Any span of any causal LM that transformers knows, and its ends, as modules that run."""
