"""What happens after the answers: labels, quality, drift, verdicts, repairs, replay.
Training itself is called, not done, here."""
