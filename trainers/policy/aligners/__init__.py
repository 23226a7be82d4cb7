"""Ways to align a policy with preference pairs, one file each; each starts from a policy's folder and writes a new one."""
