"""A node that serves segments of a graph: requests in, what they give out, and nothing kept between them."""
