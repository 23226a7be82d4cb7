"""The commands of the command line, one file each; `up`, `demo` and `torture` have packages of their own."""
