"""How a program starts, fails, writes files, and meets the other processes of its run."""
