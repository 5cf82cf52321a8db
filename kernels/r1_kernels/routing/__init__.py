"""Which experts a token goes to, and which tokens an expert gets."""
