"""The linear path: what the hours of all authorities say about DF's error of each, in closed form, fitted again each month."""
