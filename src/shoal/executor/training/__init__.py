"""Forward and backward through frozen blocks."""
