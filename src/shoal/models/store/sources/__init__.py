"""Where models come from: each source behind one protocol (:mod:`shoal.models.store.sources.source`)."""
