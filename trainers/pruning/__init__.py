"""What may be removed from the data folder, why everything else stays, and its removal."""
