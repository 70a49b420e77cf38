"""Rules, dashboards, runbooks: what watches the live model from outside."""
