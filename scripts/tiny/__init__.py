"""The parts of `scripts.make_tiny`; the only ones that may train with torch and transformers."""
