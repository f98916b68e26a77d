"""How checkpoints lie on a disk, whatever policy they hold: as Hugging Face's libraries do it."""
