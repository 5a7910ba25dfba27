"""Who may call, how often, and what each has used."""
