"""Ways to align a policy with preference pairs, one file each; each reads a policy's folder and writes a new one."""
