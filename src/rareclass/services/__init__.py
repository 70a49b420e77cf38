"""What the product does, a room per stage: the only place where adapters meet.
What is computed belongs to core; what a command prints, to the command line."""
