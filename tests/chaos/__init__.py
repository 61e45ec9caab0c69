"""The fault campaign: `make chaos`. See docs/reliability.md."""
