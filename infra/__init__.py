"""Settings, wiring, local services and commands: this room imports all others, and none imports it."""
