"""The care of what is stored and of what runs on one machine: backup, restore, retention, units, up.
Nothing that a model learns from, and nothing that judges it."""
