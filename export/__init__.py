"""From a checkpoint to a bundle: split, export, prove, pack. Needs torch; runs on a workstation."""
