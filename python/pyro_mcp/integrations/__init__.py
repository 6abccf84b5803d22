"""Integrations with other libraries. Each needs its extra."""
