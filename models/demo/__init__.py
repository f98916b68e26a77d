"""The demo policy: its tokenizer, its recorded episodes, and how they were made."""
