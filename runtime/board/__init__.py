"""The machine that a policy runs on, and what keeps it from running one."""
