"""What an operator watches while a policy drives: a terminal, or a page with a stop button."""
