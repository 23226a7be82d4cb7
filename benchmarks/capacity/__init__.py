"""How large a cluster a volume of events a day needs: sizes by arithmetic, tried on simulated days."""
