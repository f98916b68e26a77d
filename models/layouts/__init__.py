"""How checkpoints lie on a disk: as Hugging Face does it, and as the authors' Megatron does."""
