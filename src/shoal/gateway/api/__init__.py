"""OpenAI's routes: from bodies to requests, and from answers to bodies."""
