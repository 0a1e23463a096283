"""Self-evolution as plain functions: selection rules, drift guards, the forecast."""
