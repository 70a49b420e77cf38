"""Answer with scores, online and in batch, keep what was answered, and roll a server to a version.
Nothing here judges the answers."""
