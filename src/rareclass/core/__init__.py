"""The methods: rows, numbers and decisions in, numbers and decisions out.
No framework, no clock, no network, no files but a version's own folder: those belong to the adapters."""
