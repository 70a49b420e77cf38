"""The care of what is stored: backup, restore, retention. Nothing that a model learns from."""
