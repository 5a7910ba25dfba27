"""The hops of a session: found, opened, asked, judged and replaced."""
