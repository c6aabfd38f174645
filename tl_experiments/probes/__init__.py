"""Heads on fixed features, many at once: trained in one computation, or solved."""
