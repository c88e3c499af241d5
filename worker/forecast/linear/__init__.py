"""The linear path: what all authorities' hours say about DF's error of each, in closed form, fitted again each month."""
