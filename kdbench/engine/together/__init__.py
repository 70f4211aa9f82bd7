"""One cell on several processes: what they divide among themselves, and how its result stays that of one."""
