"""What a policy will cost and give on a board, before anything is exported."""
