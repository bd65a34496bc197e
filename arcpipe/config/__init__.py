"""Settings: their types and bounds, and where their values come from."""
