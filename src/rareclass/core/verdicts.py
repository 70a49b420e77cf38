"""The verdicts of triage and the exit codes that tell them; apart, because who only reads a code needs no pandas."""

EXIT_CODES = {"nothing": 0, "rethreshold": 10, "recalibrate": 11, "retrain": 12, "page": 13}
