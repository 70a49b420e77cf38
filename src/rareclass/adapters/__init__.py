"""What talks to the world outside: one system each, as thin as it can be.
No adapter knows another (services bring them together), and none decides what a method decides."""
