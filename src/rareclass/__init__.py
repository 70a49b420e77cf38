"""rareclass."""
