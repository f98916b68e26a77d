"""Networks that policies are made of, a module each: torch, with published parameter names."""
